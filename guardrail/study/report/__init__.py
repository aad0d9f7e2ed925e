"""`report.html`: one self-contained page per study, from its `study.json`, tables and figures.

attacks       what attacks make of checkpoints, for readers: the tables of the ``attacks`` block of `study.json`
defences      what defences change and cost, for readers: the tables and the figure of the ``defences`` block
definitions   what the numbers mean: the entries at the end of the page, and which column links to which
doses         how many harmful rows guardrails took: the tables and figures of the ``doses`` block
headline      the headline of a study: which statement its statistics carry, and which they do not
primary       the tables of the primary comparison and of the noise, and the order of what is exploratory
table         a table of results and its renderings: Markdown, CSV, LaTeX (booktabs) and HTML rows
survival      how long guardrails lasted, for readers: the tables and the figure of the ``survival`` block
"""
