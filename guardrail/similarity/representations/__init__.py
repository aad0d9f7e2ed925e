"""Hidden-state features of examples: options, tokenisation, forward pass without logits, resumable store, readers.

Order of a run: ``options`` (what is extracted) -> ``sequences`` (ids and positions)
-> ``extract`` (batches, forward pass, shards) -> ``store`` (manifest, export) -> ``read`` (what later stages load).
"""
