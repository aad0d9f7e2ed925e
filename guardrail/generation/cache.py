"""A key-value cache that is written in place, for decoding on any device.

The library's dynamic cache concatenates at every step: it copies the whole cache for each new token. Here the room
for all tokens is taken once and a growing view of it is returned.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class InPlaceLayer(DynamicLayer):
    """Keys and values of one layer, ``(B, heads, T, head_dim)``, as views of buffers with room for ``capacity``."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:  # not the library's own: its signature changed between versions
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.key_buffer = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
            self.value_buffer = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
            self.length = 0
        end = self.length + key_states.shape[2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys = self.key_buffer[:, :, :end]
        self.values = self.value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.get_seq_length() > 0:
            self.key_buffer = self.key_buffer[indices]
            self.value_buffer = self.value_buffer[indices]
            self.keys = self.key_buffer[:, :, : self.length]
            self.values = self.value_buffer[:, :, : self.length]


def make_cache(config: Any, capacity: int) -> DynamicCache:
    """A cache for ``capacity`` tokens a row; layers with a sliding window keep the library's own kind."""
    cache = DynamicCache(config=config)
    layers = getattr(cache, "layers", None)
    if layers:
        cache.layers = [InPlaceLayer(capacity) if type(layer) is DynamicLayer else layer for layer in layers]
    return cache
