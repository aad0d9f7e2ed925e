"""Loading and checking checkpoints and tokenizers; memory."""
