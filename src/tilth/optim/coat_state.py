"""FP8 moments of parameters that are spread over processes: what is saved, and what of it each process takes back.

Codes are saved in the shape of the parameter, spread as it is, so that each process writes its own. The scalars of
groups (an eighth of a byte a parameter) are saved whole, in the order of the processes, with the numbers that each
process held: from these, any other number of processes finds the scalars of its own numbers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilth.precision.fp8 import MOMENT_GROUP, Exponent, Moment, dequantize_numbers, quantize_moment
from tilth.recipe.errors import BadInput

SCALARS = ("m_largest", "m_exponent", "v_largest", "v_exponent")
CODES = ("m_codes", "v_codes")


class Parts(NamedTuple):
    """local: this process's part of a tensor (all of it, if it is not spread), sharing its memory; sizes: numbers of
    all parts, in order; own: which one is this; group: the processes that hold the parts."""

    local: Tensor
    sizes: list[int]
    own: int
    group: Any = None

    @property
    def start(self) -> int:
        """Of this part, in the flattened whole."""
        return sum(self.sizes[: self.own])


def parts_of(tensor: Any) -> Parts:
    """How a tensor is spread. BadInput unless whole, or in rows (FSDP2, perhaps replicated besides)."""
    if not hasattr(tensor, "placements"):
        return Parts(tensor, [tensor.numel()], 0)
    sharded = [axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if not sharded:
        return Parts(tensor.to_local(), [tensor.numel()], 0)
    if len(sharded) > 1 or not tensor.placements[sharded[0]].is_shard(0):
        raise BadInput("`optimizer.kind` coat_adamw stores moments in groups along the rows of a parameter, which must "
                       "not be split in columns: train without --tensor, or use adamw.")
    mesh, axis = tensor.device_mesh, sharded[0]
    rows, processes = tensor.shape[0], mesh.size(axis)
    each = -(-rows // processes)
    held = [max(0, min(each, rows - index * each)) for index in range(processes)]
    width = tensor.numel() // rows if rows else 0
    return Parts(tensor.to_local(), [count * width for count in held], mesh.get_local_rank(axis), mesh.get_group(axis))


def saved(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """The state of one parameter as it goes into a checkpoint."""
    parts = parts_of(parameter)
    codes = {key: like(state[key], parameter, parts.local) for key in CODES}
    scalars = {key: gathered(state[key], parts) for key in SCALARS}
    return {"step": state["step"], **codes, **scalars, "sizes": parts.sizes}


def like(codes: Tensor, parameter: Any, local: Tensor) -> Tensor:
    """Flat codes in the shape of the parameter, spread as it is."""
    codes = codes.view(local.shape)
    if not hasattr(parameter, "placements"):
        return codes
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(codes, parameter.device_mesh, parameter.placements, run_check=False,
                              shape=parameter.shape, stride=parameter.stride())


def gathered(scalars: Tensor | None, parts: Parts) -> Tensor | None:
    """The scalars of the groups of all parts, in order."""
    if scalars is None or parts.group is None:
        return scalars
    counts = [-(-size // MOMENT_GROUP) for size in parts.sizes]
    padded = torch.zeros(max(counts), dtype=scalars.dtype, device=scalars.device)
    padded[: len(scalars)] = scalars
    found = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(found, padded, group=parts.group)
    return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])


def restored(state: dict[str, Any], parameter: Tensor, expansion: Exponent | None) -> dict[str, Any]:
    """The state of this process's part of `parameter`, from what `saved` gave, in one part or many."""
    parts = parts_of(parameter)
    device, start, size = parts.local.device, parts.start, parts.sizes[parts.own]
    old_start, old_end = bounds(state["sizes"])
    new_start, new_end = bounds([size])
    new_start, new_end = new_start + start, new_end + start
    at = torch.searchsorted(old_start, new_start, right=True) - 1
    whole = (old_start[at] == new_start) & (old_end[at] == new_end) if size else torch.ones(0, dtype=torch.bool)
    found: dict[str, Any] = {"step": state["step"]}
    for name in ("m", "v"):
        largest, exponent = state[f"{name}_largest"].cpu(), state[f"{name}_exponent"]
        exponent = None if exponent is None else exponent.cpu()
        local = parts_of(state[f"{name}_codes"]).local.reshape(-1)
        if len(local) != size:  # a whole tensor, of which this process holds a part
            local = local[start : start + size]
        stored = Moment(local, largest[at], None if exponent is None else exponent[at])
        if not whole.all():
            of = torch.searchsorted(old_start, torch.arange(start, start + size), right=True) - 1
            values = dequantize_numbers(local.cpu(), largest[of], None if exponent is None else exponent[of])
            stored = mixed(whole, stored, quantize_moment(values, expansion))
        parts_found = (None if one is None else one.to(device, copy=True).contiguous() for one in stored)
        found |= dict(zip((f"{name}_codes", f"{name}_largest", f"{name}_exponent"), parts_found, strict=True))
    return found


def mixed(whole: Tensor, old: Moment, new: Moment) -> Moment:
    """The `whole` (G,) groups of `old`, bit by bit, and the other groups of `new`."""
    kept = whole.repeat_interleave(MOMENT_GROUP)[: len(new.codes)]
    codes = torch.where(kept, old.codes.cpu().view(torch.uint8), new.codes.view(torch.uint8)).view(new.codes.dtype)
    exponent = None
    if old.exponent is not None and new.exponent is not None:
        exponent = torch.where(whole, old.exponent, new.exponent)
    return Moment(codes, torch.where(whole, old.largest, new.largest), exponent)


def bounds(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Where the groups of consecutive parts begin and end in the flattened whole, two int64 (G,)."""
    starts, ends, base = [], [], 0
    for size in sizes:
        first = torch.arange(0, size, MOMENT_GROUP)
        starts.append(base + first)
        ends.append(base + (first + MOMENT_GROUP).clamp(max=size))
        base += size
    return torch.cat(starts), torch.cat(ends)
