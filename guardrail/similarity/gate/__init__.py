"""The gate: which rows of a customer's file may be trained on, and may the file be at all?

Order of a run: ``policy`` (what is asked of a row) -> ``source`` (the file, line by line, as its bytes) -> ``measure``
(chunks of rows: scores, format, secrets, segments; one file each, so that a kill costs one chunk) -> ``references``
(where good rows lie) -> ``duplicates`` -> ``decide`` (reasons, decision, verdict) -> ``write`` (kept and quarantined
rows, rows.jsonl, receipt) -> ``words`` and ``page``. ``pipeline`` calls them in this order.

Text of a row is in memory for one chunk and is written to kept.jsonl and quarantined.jsonl alone, unless it is asked
for on the page (--show_text True).
"""
