"""The key-value cache of a causal decoder.

Shapes: B rows, P positions held, T new positions, K key-value heads, E head width.
"""

from typing import Self

import torch
from torch import Tensor


class Cache:
    """Keys and values of every layer for the positions seen so far, equally many in each row, grown as needed.

    A prefix shared by several continuations is run once, then `expand`ed to as many rows; `truncate` forgets
    positions after the first `length`, so that one prefix serves again and again.
    """

    def __init__(self, layers: int, capacity: int = 0):
        self.length = 0
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def append(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer; returns keys and values (B, P + T, K, E) of all positions."""
        end = self.length + k_BTKE.shape[1]
        keys = self.keys[layer] = self._room(self.keys[layer], k_BTKE, end)
        values = self.values[layer] = self._room(self.values[layer], v_BTKE, end)
        keys[:, self.length:end] = k_BTKE
        values[:, self.length:end] = v_BTKE
        return keys[:, :end], values[:, :end]

    def advance(self, positions: int) -> None:
        """Count new positions once all layers have stored them."""
        self.length += positions

    def truncate(self, length: int) -> Self:
        """Forget all positions after the first `length`."""
        if not 0 <= length <= self.length:
            raise ValueError(f"The cache holds {self.length} positions; it cannot be cut to {length}.")
        self.length = length
        return self

    def expand(self, rows: int) -> "Cache":
        """A copy with each row repeated `rows` times in place (a a b b), free to grow on its own."""
        copy = Cache(len(self.keys), self.capacity)
        copy.length = self.length
        copy.keys = [None if k is None else k[:, :self.length].repeat_interleave(rows, 0) for k in self.keys]
        copy.values = [None if v is None else v[:, :self.length].repeat_interleave(rows, 0) for v in self.values]
        return copy

    def _room(self, held: Tensor | None, new: Tensor, end: int) -> Tensor:
        if held is not None and held.shape[1] >= end:
            return held
        # Doubling keeps the copying linear in the number of positions.
        capacity = max(end, self.capacity, 2 * held.shape[1] if held is not None else 0)
        grown = new.new_empty(new.shape[0], capacity, *new.shape[2:])
        if held is not None:
            grown[:, :self.length] = held[:, :self.length]
        return grown


def no_grad_needed(cache: Cache | None) -> None:
    """A cache is written in place, which a backward pass could not follow."""
    if cache is not None and torch.is_grad_enabled():
        raise ValueError("A key-value cache works without gradients only: call the model under torch.no_grad().")
