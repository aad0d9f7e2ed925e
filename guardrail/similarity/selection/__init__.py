"""Subsets of a pool of rows by their similarity to anchor rows, controls on the same interface, and their description.

Order of a run: ``scorers`` (a number per row) -> ``ranking`` (score and merge rules) -> ``selectors`` (one function
per subset) -> ``composition`` and ``diversity`` (what was selected) -> ``output`` (files and selection.json).
"""
