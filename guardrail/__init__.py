"""Durability of LLM safety guardrails under fine-tuning: what the entry points share, one module per stage.

Importing this package imports neither torch nor transformers.
"""

__version__ = "0.1.0"
