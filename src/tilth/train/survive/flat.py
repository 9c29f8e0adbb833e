"""A full training state as one run of bytes, cut into shards: what a snapshot copies and a recovery puts together.

A shard is: 8 bytes, the length of the head; the head, JSON with the tree of the state (as in a checkpoint) and the
place of every tensor; the tensors that are this rank's own (its random state, its part of what is spread over
processes); its range of the bytes of the tensors that all ranks share. Of these, rank i of n takes the i-th n-th, so
that each copies 1/n of the parameters and moments.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    """One rank's shard, not yet copied. size: bytes of the shard; pieces refer to live tensors where those do not
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


def share(total: int, rank: int, world: int) -> tuple[int, int]:
    """[begin, end) of a rank's share of `total` bytes; aligned, so that all but the last are equally long."""
    each = _aligned(-(-total // world))
    return min(rank * each, total), min((rank + 1) * each, total)


def flatten(state: Any, rank: int, world: int, stays: Callable[[Tensor], bool] = lambda tensor: False,
            shared: Callable[[Tensor], bool] = lambda tensor: True) -> Flat:
    """The shard of `rank`. stays: whether a tensor keeps its values until the fence; others are copied here and now;
    shared: whether it is the same on every rank; what is spread over processes never is.

    Raises TypeError where the state holds what a checkpoint could not hold either.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(state, tensors, {}, take=lambda tensor: tensor.detach())
    table: list[tuple[str, str, list[int], int, int, bool, list[int] | None]] = []
    ends = {True: 0, False: 0}  # of the shared tensors and of this rank's own
    for name, tensor in tensors.items():
        part, spread = local(tensor), is_spread(tensor)
        size, common = part.numel() * part.element_size(), not spread and shared(tensor)
        table.append((name, str(part.dtype).removeprefix("torch."), list(part.shape), ends[common], size, common,
                      list(tensor.shape) if spread else None))
        ends[common] += _aligned(size)
    begin, end = share(ends[True], rank, world)
    common_table = [entry for entry in table if entry[5]]
    head = json.dumps({"tree": tree, "tensors": table, "own": ends[False], "total": ends[True], "begin": begin,
                       "end": end, "table": zlib.crc32(repr(common_table).encode())}).encode()
    start = _aligned(LENGTH + len(head))
    pieces = []
    for (_, _, _, place, size, common, _), tensor in zip(table, tensors.values(), strict=True):
        low, high = (max(place, begin), min(place + size, end)) if common else (place, place + size)
        if low < high:
            at = start + (ends[False] + low - begin if common else low)
            pieces.append(Piece(_bytes_of(local(tensor), stays)[low - place:high - place], at))
    return Flat(head, pieces, start + ends[False] + end - begin)


def _bytes_of(tensor: Tensor, stays: Callable[[Tensor], bool]) -> Tensor:
    """uint8 (bytes,): of the tensor itself where it stays as it is, of a copy otherwise."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat if stays(tensor) or not tensor.is_contiguous() else flat.clone()


def write_head(flat: Flat, target: np.ndarray) -> None:
    """Put the head, and zeros up to the tensors' bytes, into a shard."""
    target[:flat.start] = 0
    target[:LENGTH] = np.array([len(flat.head)], np.int64).view(np.uint8)
    target[LENGTH:LENGTH + len(flat.head)] = np.frombuffer(flat.head, np.uint8)


def head_of(shard: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """(the head of a shard, the bytes of its tensors: its own, then its range of the shared ones)."""
    length = int(shard[:LENGTH].view(np.int64)[0])
    return json.loads(shard[LENGTH:LENGTH + length].tobytes()), shard[_aligned(LENGTH + length):]


def stands_alone(shard: np.ndarray) -> bool:
    """Whether this shard shares nothing with others, as where the whole state is spread over processes."""
    return head_of(shard)[0]["total"] == 0


def unflatten(shards: Sequence[np.ndarray], own: int, layout: dict[str, Tensor] | None = None,
              path_of: Callable[[str], str] = lambda name: name) -> Any:
    """The state that rank `own` had, from the shards of all ranks in order (its own alone, if that stands alone).

    layout, path_of: as for checkpoints, how tensors that are spread are spread. Raises ValueError where the shards are
    not of one state.
    """
    heads = [head_of(shard) for shard in shards]
    head, mine = heads[own]
    ranges: list[tuple[int, int, np.ndarray]] = []  # [begin, end) of the shared bytes, and the bytes
    for other, part in heads:
        if other["begin"] != (ranges[-1][1] if ranges else 0) or other["table"] != head["table"]:
            raise ValueError("these shards do not belong to one state")
        ranges.append((other["begin"], other["end"], part[other["own"]:]))
    if ranges[-1][1] != head["total"]:
        raise ValueError("these shards are not all of a state")
    alone = [(0, head["own"], mine)]
    tensors = {name: _tensor(ranges if shared else alone, entry, spread, (layout or {}).get(path_of(name)))
               for name, *entry, shared, spread in head["tensors"]}
    return decode(head["tree"], tensors)


def _tensor(ranges: list[tuple[int, int, np.ndarray]], entry: list[Any], spread: list[int] | None,
            model: Tensor | None) -> Tensor:
    dtype, shape, at, size = entry
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    if size:
        target = tensor.reshape(-1).view(torch.uint8).numpy()
        for begin, end, part in ranges:
            low, high = max(begin, at), min(end, at + size)
            if low < high:
                target[low - at:high - at] = part[low - begin:high - begin]
    if spread is None:
        return tensor
    if model is None or not is_spread(model):
        raise ValueError("a tensor was spread over processes when the snapshot was taken, and is not now")
    from torch.distributed.tensor import DTensor
    spread_model: Any = model
    return DTensor.from_local(tensor.to(model.device), spread_model.device_mesh, spread_model.placements,
                              run_check=False, shape=torch.Size(spread), stride=model.stride())
