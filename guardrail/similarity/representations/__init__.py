"""Hidden-state features of examples: options, tokenisation, forward pass without logits, resumable store, readers.

Order of a run: ``options`` (what is extracted) -> ``sequences`` (ids and positions)
-> ``extract`` (batches, forward pass, shards) -> ``store`` (manifest, export) -> ``read`` (what later stages load).

    hidden_states   hidden states of a transformers model: the requested layers at the requested positions, no ...
    vllm_backend    the vLLM backend: hidden states through its pooling mode
"""
