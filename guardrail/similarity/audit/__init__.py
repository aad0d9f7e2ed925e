"""The provider's audit: how similar is a customer's data set to each alignment set, before anything is trained.

Order of a run: ``sets`` (load or extract) -> ``analyse`` (similarities, ranks, stability) -> ``forecasts`` ->
``figures`` -> ``answers`` and ``page`` (one HTML file) -> ``pipeline`` (audit.json, audit.html).
"""
