"""Room in the key-value cache for a whole reply, so that a step writes one column and copies nothing.

transformers' DynamicLayer concatenates at every step, which took 60 % of the time of a 2 M judge on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose keys and values [B, heads, length, head_dim] are views of larger buffers."""

    def __init__(self, layer: DynamicLayer, rows: torch.Tensor, room: int) -> None:
        """The `rows` of `layer`, in that order, with place for `room` more tokens."""
        assert layer.keys is not None and layer.values is not None
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self.length = layer.keys.shape[-2]
        self.buffers = [_with_room(layer.keys, rows, room), _with_room(layer.values, rows, room)]
        self._look()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stop = self.length + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., self.length : stop, :] = new
        self.length = stop
        return self._look()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._look()

    def _look(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (buffer[..., : self.length, :] for buffer in self.buffers)
        return self.keys, self.values


def _with_room(states: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
    _, heads, length, width = states.shape
    buffer = states.new_empty(len(rows), heads, length + room, width)
    buffer[..., :length, :] = states[rows]
    return buffer


def expand(cache: Cache, rows: torch.Tensor, room: int) -> None:
    """Make the cache's batch the `rows` (repeats allowed), and make room where layers are plain ones."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length() > 0:
            cache.layers[index] = RoomyLayer(layer, rows, room)
        else:
            layer.batch_select_indices(rows)
