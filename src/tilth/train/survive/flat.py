"""A full training state as one run of bytes, cut into shards: what a snapshot copies and a recovery puts together.

A shard is: 8 bytes, the length of the head; the head, JSON with the tree of the state (as in a checkpoint) and the
place of every tensor; the member's range of the tensors' bytes. Where each process holds the whole state, member i of n
takes the i-th n-th of the bytes, so that each copies 1/n; where the state is spread over processes, each takes its own.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tilth.optim.spread import is_spread, local
from tilth.train.encoding import decode, encode

ALIGN = 64
LENGTH = 8  # bytes of the length that stands before the head


@dataclass(frozen=True)
class Piece:
    """Bytes of a tensor and where they go: `source` uint8 (n,), on its own device; `at`: their place in the shard."""

    source: Tensor
    at: int


@dataclass(frozen=True)
class Flat:
    """One member's shard, not yet copied. size: bytes of the shard; pieces refer to live tensors where those do not
    change before the fence, and to copies of all others."""

    head: bytes
    pieces: list[Piece]
    size: int

    @property
    def start(self) -> int:
        """Where the tensors' bytes begin in the shard."""
        return _aligned(LENGTH + len(self.head))


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def share(total: int, member: int, members: int) -> tuple[int, int]:
    """[begin, end) of a member's share of `total` bytes; aligned, so that all but the last are equally long."""
    each = _aligned(-(-total // members))
    return min(member * each, total), min((member + 1) * each, total)


def flatten(state: Any, member: int, members: int, stays: Callable[[Tensor], bool] = lambda tensor: False) -> Flat:
    """The shard of `member`. stays: whether a tensor keeps its values until the fence; others are copied here and now.

    Raises TypeError where the state holds what a checkpoint could not hold either.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(state, tensors, {}, take=lambda tensor: tensor.detach())
    spread = any(map(is_spread, tensors.values()))
    table: list[tuple[str, str, list[int], int, int, list[int] | None]] = []
    at = 0
    for name, tensor in tensors.items():
        part = local(tensor)
        size = part.numel() * part.element_size()
        table.append((name, str(part.dtype).removeprefix("torch."), list(part.shape), at, size,
                      list(tensor.shape) if is_spread(tensor) else None))
        at += _aligned(size)
    begin, end = (0, at) if spread else share(at, member, members)
    head = json.dumps({"tree": tree, "tensors": table, "total": at, "begin": begin, "end": end, "spread": spread,
                       "table": zlib.crc32(repr(table).encode())}).encode()
    start = _aligned(LENGTH + len(head))
    pieces = []
    for (_, _, _, place, size, _), tensor in zip(table, tensors.values(), strict=True):
        low, high = max(place, begin), min(place + size, end)
        if low < high:
            part = local(tensor)
            flat = part.contiguous().reshape(-1).view(torch.uint8)[low - place:high - place]
            fresh = not part.is_contiguous()
            pieces.append(Piece(flat if fresh or stays(part) else flat.clone(), start + low - begin))
    return Flat(head, pieces, start + end - begin)


def write_head(flat: Flat, target: np.ndarray) -> None:
    """Put the head, and zeros up to the tensors' bytes, into a shard."""
    target[:flat.start] = 0
    target[:LENGTH] = np.array([len(flat.head)], np.int64).view(np.uint8)
    target[LENGTH:LENGTH + len(flat.head)] = np.frombuffer(flat.head, np.uint8)


def head_of(shard: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """(the head of a shard, its range of the tensors' bytes)."""
    length = int(shard[:LENGTH].view(np.int64)[0])
    return json.loads(shard[LENGTH:LENGTH + length].tobytes()), shard[_aligned(LENGTH + length):]


def is_spread_shard(shard: np.ndarray) -> bool:
    """Whether this shard is a rank's own part of a state that is spread over processes."""
    return bool(head_of(shard)[0]["spread"])


def unflatten(shards: Sequence[np.ndarray], own: int, layout: dict[str, Tensor] | None = None,
              path_of: Callable[[str], str] = lambda name: name) -> Any:
    """The state that member `own` had, from the shards of all members in order (from its own alone if spread).

    layout, path_of: as for checkpoints, how tensors that are spread are spread. Raises ValueError where the shards are
    not of one state.
    """
    heads = [head_of(shard) for shard in shards]
    head = heads[own][0]
    if head["spread"]:
        whole = heads[own][1]
    else:
        whole = np.empty(head["total"], np.uint8)
        reached = 0
        for other, part in heads:
            if other["begin"] != reached or other["table"] != head["table"]:
                raise ValueError("these shards do not belong to one state")
            whole[other["begin"]:other["end"]] = part[:other["end"] - other["begin"]]
            reached = other["end"]
        if reached != head["total"]:
            raise ValueError("these shards are not all of a state")
    tensors = {name: _tensor(whole, entry, (layout or {}).get(path_of(name))) for name, *entry in head["tensors"]}
    return decode(head["tree"], tensors)


def _tensor(whole: np.ndarray, entry: list[Any], model: Tensor | None) -> Tensor:
    dtype, shape, at, size, spread = entry
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    if size:
        tensor.reshape(-1).view(torch.uint8).numpy()[:] = whole[at:at + size]
    if spread is None:
        return tensor
    if not isinstance(model, DTensor):
        raise ValueError("a tensor was spread over processes when the snapshot was taken, and is not now")
    return DTensor.from_local(tensor.to(model.device), model.device_mesh, model.placements, run_check=False,
                              shape=torch.Size(spread), stride=model.stride())
