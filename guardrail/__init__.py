"""Durability of LLM safety guardrails under fine-tuning, in rooms named after the method.

    core         errors, files, command lines, options, registries, hashes, ranks: what no paper is about
    statistics   all inference: rates, agreement, resampling, seeds crossed with prompts, regression
    data         rows and their shapes, prompts as token ids, benches, published sets, mixed training splits
    models       loading and checking checkpoints and tokenizers
    generation   Hugging Face, vLLM, a server, behind one interface
    similarity   section 3 of the paper: representations, clusters, subsets; scorers; the audit
    training     sections 4.1 and 4.2: supervised fine-tuning on DeepSpeed, defences
    evaluation   section 4.3: safety, judges, utility, MT-Bench, attacks
    sandbox      the embedded world and its tiny models
    bench        memory, operations and speed of the stages, from a model's shape
    study        the grid: jobs, keys, plan, statistics, report
    command      the ``guardrail`` command

A room imports only from rooms above it in this list. Importing this package imports neither torch nor transformers.
"""

__version__ = "0.1.0"
