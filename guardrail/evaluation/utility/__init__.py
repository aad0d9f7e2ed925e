"""Utility: is the fine-tuned model good at the task, and how good is it beside its safety?

tasks      evaluation rows: prompt, reference, where they come from
scoring    ROUGE-1, exact match, GSM8K; per row and as means with intervals
generate   completions of a task's prompts, resumable, over ranks
loss       training loss on held-out rows
results    results file and the ``utility`` block that the study joins
harness    hand-over to EleutherAI's lm-evaluation-harness
"""
