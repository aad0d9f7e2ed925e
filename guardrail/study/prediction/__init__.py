"""Do scores of rows predict durability? For every scorer, bins of the same pool are fine-tuned and compared.

Order: ``options`` (the study file's block) -> ``pool`` (rows, planted doses, bins) -> ``scores`` (every scorer's number
per row, and its cost) -> ``cells`` (fine-tune a bin, probe, judge) -> ``results`` -> ``analysis`` -> ``write`` (tables,
figure). docs/prediction.md.
"""
