"""What this project measures, in the forms of other tools: the same outcome per prompt, whoever runs it.

inspect_task   the safety prompts as a task for Inspect
keyword        the keyword rule's outcome of one answer, without files
tamperbench    answers and judgements as parquet in TamperBench's columns

The task for lm-evaluation-harness lies in ``configs/lm_eval``. None of the tools is needed to import the others.
"""
