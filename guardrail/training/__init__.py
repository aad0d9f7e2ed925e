"""Supervised fine-tuning on DeepSpeed with align-anything's flags; the entry point is ``guardrail.training.sft``."""
