"""Data-set folders in the hub's layout: prepared sources (``datasets/prepare.py``), mixtures (``datasets/mix.py``)."""
