"""Rows and their shapes, prompts as token ids, benches, published data sets as folders, mixed training splits."""
