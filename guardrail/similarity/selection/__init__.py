"""Subsets of a pool of rows by their similarity to anchor rows, controls on the same interface, and their description.

Order of a run: ``scorers`` (a number per row) -> ``ranking`` (score and merge rules) -> ``selectors`` (one function
per subset) -> ``composition`` and ``diversity`` (what was selected) -> ``output`` (files and selection.json).

    compute    the computing half of a selection run: align rows with representations, score, select, describe, ...
    options    what a selection can be: the registry of selectors, the merge rules, the options
    pipeline   select rows of a pool by similarity to anchor rows: check, compare with what is there, score ...
    sweep      how much does the choice of layer and position decide the subset?
"""
