"""Answers to harmful and to harmless prompts, greedy, sampled, or over a sweep of decoding settings."""
