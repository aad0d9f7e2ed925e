"""`report.html`: one self-contained page per study, from its `study.json`, tables and figures."""
