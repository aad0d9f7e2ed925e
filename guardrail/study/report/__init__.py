"""`report.html`: one self-contained page per study, from its `study.json`, tables and figures.

attacks    what attacks make of checkpoints, for readers: the tables of the ``attacks`` block of `study.json`
headline   the headline of a study: which statement its statistics carry, and which they do not
table      a table of results and its renderings: Markdown, CSV, LaTeX (booktabs) and HTML rows
defences   what defences change and cost, for readers: the tables and the figure of the ``defences`` block
survival   how long guardrails lasted, for readers: the tables and the figure of the ``survival`` block
"""
