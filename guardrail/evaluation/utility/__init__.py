"""Utility: is the fine-tuned model good at the task, and how good is it beside its safety?

tasks      evaluation rows: prompt, reference, where they come from; the tasks by name
scoring    ROUGE-1, exact match, GSM8K; per row and as means with intervals
loss       training loss on held-out rows
evaluate   one evaluation, from flags to the results file with its ``utility`` block that a study joins
harness    hand-over to EleutherAI's lm-evaluation-harness
"""
