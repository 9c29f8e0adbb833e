"""Compress a model block by block: each block's layers are quantized on what the compressed blocks before it put out.

Shapes: B rows of text, L positions, D width, I input features of a layer.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tilth.precision.hessian import Factor, Hessian
from tilth.precision.linear import CompressedLinear, replace
from tilth.precision.weights import Method
from tilth.recipe import BadInput

Batch = Mapping[str, Tensor]


@dataclass
class LayerReport:
    """One layer: its share of outliers, its bytes by part, the solver's loss, the damping that was used (the recipe's,
    unless the Hessian needed more), the share of inputs that were always 0, seconds."""

    outlier_share: float
    bytes: dict[str, int]
    loss: float
    damping: float
    dead_share: float
    seconds: float


@dataclass
class Capture:
    """What the first block is called with, one entry a batch; `hidden` becomes the input of the next block."""

    hidden: list[Tensor] = field(default_factory=list)
    rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    real: list[Tensor] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


class _Captured(Exception):
    """Ends a forward pass that has reached what was asked for."""


@torch.no_grad()
def compress_model(model: Any, method: Method, batches: Sequence[Batch] = (),
                   progress: Callable[[int, int], None] | None = None) -> dict[str, LayerReport]:
    """Replace every linear layer of `model.blocks`, in place; embeddings, norms and the output matrix stay.

    batches: calibration text as streams give it: `tokens` (B, L), and with packed units `unit_index` (-1: padding) and
    `positions`. Within a block, layers that read the same tensor share a Hessian, and each such set sees the sets
    before it compressed. Raises BadInput where a method needs text and there is none, or numbers are not finite.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None or not len(blocks):
        raise BadInput(f"{type(model).__name__} has no `blocks` to compress.")
    if getattr(getattr(model, "config", None), "cross_attention", False):
        raise BadInput("A model that reads a memory (cross_attention: true) cannot be calibrated on text alone.")
    if method.calibrated and not batches:
        raise BadInput(f"The method '{method.kind}' measures the inputs of the layers: give text to calibrate on, or "
                       f"choose rtn.")
    if method.calibrated and getattr(getattr(model, "config", None), "experts", None) is not None:
        raise BadInput(f"The method '{method.kind}' measures inputs of layers on every token, but an expert sees "
                       f"only those that ask it; choose rtn for a mixture of experts.")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise BadInput(f"{name} has weights that are not finite numbers; the model is damaged, and nothing was "
                           f"compressed.")
    model.eval()
    reports: dict[str, LayerReport] = {}
    capture = _first_inputs(model, batches) if method.calibrated else Capture()
    for index, block in enumerate(blocks):
        prefix = f"blocks.{index}."
        if method.calibrated:
            for names in _same_input(block, capture):
                factor = method.factor(_hessian(block, names[0], capture).matrix, prefix + names[0])
                for name in names:
                    reports[prefix + name] = _replace(block, prefix, name, method, factor)
            capture.hidden = [_run(block, capture, number) for number in range(len(capture.hidden))]
        else:
            for name, layer in list(linears(block).items()):
                factor = Factor.identity(layer.in_features, layer.weight.device)
                reports[prefix + name] = _replace(block, prefix, name, method, factor)
        if progress is not None:
            progress(index + 1, len(blocks))
    return reports


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a block, by name."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def _replace(block: nn.Module, prefix: str, name: str, method: Method, factor: Factor) -> LayerReport:
    layer, start = linears(block)[name], time.process_time()
    found = method.compress(layer.weight, factor, prefix + name)
    replace(block, name, CompressedLinear(found.matrix, layer.bias))
    dead = float(factor.dead.float().mean()) if len(factor.dead) else 0.0
    return LayerReport(found.matrix.outliers / max(layer.weight.numel(), 1), found.matrix.bytes(), found.loss,
                       factor.damping, dead, time.process_time() - start)


def _first_inputs(model: Any, batches: Sequence[Batch]) -> Capture:
    """Run each batch up to the first block."""
    capture = Capture()

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        capture.hidden.append(args[0])
        capture.rest.append((args[1:], kwargs))
        raise _Captured

    device = next(model.parameters()).device
    handle = model.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in batches:
            units = batch["unit_index"].to(device) if "unit_index" in batch else None
            positions = batch["positions"].to(device) if "positions" in batch else None
            tokens = batch["tokens"].to(device)
            capture.real.append(torch.ones_like(tokens, dtype=torch.bool) if units is None else units >= 0)
            capture.samples.append(len(tokens))
            with suppress(_Captured):
                model.hidden(tokens, segments=units, positions=positions)
    finally:
        handle.remove()
    return capture


def _run(block: nn.Module, capture: Capture, number: int) -> Tensor:
    args, kwargs = capture.rest[number]
    return block(capture.hidden[number], *args, **kwargs)


def _same_input(block: nn.Module, capture: Capture) -> list[list[str]]:
    """The linear layers of a block in sets that read the same tensor, in the order in which they are called."""
    seen: dict[int, list[str]] = {}
    held: list[Tensor] = []  # so that no identity is used twice

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            held.append(args[0])
            seen.setdefault(id(args[0]), []).append(name)
        return hook

    with _hooked(block, {name: note(name) for name in linears(block)}):
        _run(block, capture, 0)
    return list(seen.values())


def _hessian(block: nn.Module, name: str, capture: Capture) -> Hessian:
    """The Hessian of one layer's inputs over all batches, padding left out."""
    layer = linears(block)[name]
    hessian = Hessian(layer.in_features, layer.weight.device)
    for number, (real, samples) in enumerate(zip(capture.real, capture.samples, strict=True)):
        def add(module: nn.Module, args: tuple[Tensor, ...], real: Tensor = real, samples: int = samples) -> None:
            hessian.add(args[0][real], samples)
            raise _Captured  # the rest of the block is not needed

        with _hooked(block, {name: add}), suppress(_Captured):
            _run(block, capture, number)
    return hessian


@contextmanager
def _hooked(block: nn.Module, hooks: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    handles = [block.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
