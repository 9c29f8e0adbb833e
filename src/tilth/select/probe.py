"""The probe: what the current model makes of units, and what one step on them would do, leaving no trace.

The effect of one optimizer step on unit x on the reference set R (Yu, Das and Xiong 2024, "MATES", NeurIPS,
https://arxiv.org/abs/2406.06046, after the influence of Koh and Liang 2017):

    I(x) = L(R | step(M, x)) - L(R | M)                      negative is good

with the run's own optimizer, moments, clipping and current rate; the unit is the whole batch. L is the mean loss in
nats a token. To first order, with s the rate of each parameter (for Adam lr / (sqrt(v) + eps), moments as they are),

    I(x) ~ - sum s * g_R * g_x

but for what momentum and decay do in the same step, which is equal for all x. It needs no forward pass over the
reference for each unit. The same number is how fast the loss of x falls while the weights follow the reference's
gradient, so that two forward passes tell it for all units at once, in whole batches:

    I(x) ~ (L(x | M - c s g_R) - L(x | M + c s g_R)) / 2 c          c: where the reference should lose NUDGE nats

(in float32; without the clipping of each unit's own gradient). Weights, moments, buffers, gradients, training mode and
random numbers are afterwards, bit by bit, what they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tilth.data.batch import Batch, Pieces, build_batch, place_pieces
from tilth.data.packing import Packed, pack
from tilth.objectives.loss import Loss
from tilth.recipe import BadInput
from tilth.select.statistics import spearman
from tilth.train.device import autocast
from tilth.train.learner import Learner
from tilth.train.loop import LoopSettings, seeded

Order = Literal["step", "first", "batched"]
NUDGE = 0.01  # small beside what bends, large beside what float32 rounds off


class Probe:
    """Asks `learner`, as it is now, about units of `pool` or about batches.

    optimizers, settings: those of the run; length: positions of a row; spend: told of the FLOPs of every pass;
    fence: called before the probe takes a step in place.
    """

    def __init__(self, learner: Learner, optimizers: dict[str, torch.optim.Optimizer], settings: LoopSettings,
                 pool: Any = None, length: int = 1024, spend: Callable[[float], None] = lambda flops: None,
                 fence: Callable[[], None] = lambda: None):
        self.learner, self.settings, self.pool, self.length, self.spend = learner, settings, pool, length, spend
        self.fence = fence
        self.precision = settings.precision
        self.spent = 0.0  # FLOPs of its passes so far
        self.update = learner.updates[0]
        self.optimizer = optimizers[self.update]

    def losses(self, units: np.ndarray, pool: Any = None) -> np.ndarray:
        """Mean loss in nats a token of each unit (rows of the pool), float64 (n,); packed, no gradient."""
        totals, counts = np.zeros(len(units)), np.zeros(len(units))
        with self._untouched(), torch.no_grad():
            for item, batch in self._packed(np.asarray(units), pool):
                loss = self._loss(batch, 1 / 3)
                np.add.at(totals, item, loss.total.double().cpu().numpy())
                np.add.at(counts, item, loss.count.double().cpu().numpy())
        return totals / np.maximum(counts, 1)

    def embeddings(self, units: np.ndarray, pool: Any = None) -> np.ndarray:
        """Mean hidden state after the last block over each unit's positions, float32 (n, width); no gradient."""
        model: Any = self.learner.modules["model"]
        if not hasattr(model, "hidden"):
            raise BadInput(f"A model of kind {type(model).__name__} has no hidden states to compare units by.")
        found, counts, device = None, np.zeros(len(units)), self.settings.device
        with self._untouched(), torch.no_grad():
            for item, batch in self._packed(np.asarray(units), pool):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                with autocast(self.settings.precision, device):
                    hidden_BLD = model.hidden(batch["tokens"], segments=batch["unit_index"],
                                              positions=batch["positions"])
                self._count((self.learner.flops(batch) or 0.0) / 3)
                inside = batch["unit_index"] >= 0
                owner = item[batch["unit_index"][inside].cpu().numpy()]
                found = np.zeros((len(units), hidden_BLD.shape[2])) if found is None else found
                np.add.at(found, owner, hidden_BLD[inside].float().cpu().numpy())
                counts += np.bincount(owner, minlength=len(units))
        assert found is not None
        return (found / np.maximum(counts, 1)[:, None]).astype(np.float32)

    def batches(self, units: np.ndarray, pool: Any = None) -> list[Batch]:
        """The units packed into batches of the run's micro-batch."""
        return [batch for _, batch in self._packed(np.asarray(units), pool)]

    def unit_batches(self, units: np.ndarray, pool: Any = None) -> Iterator[Batch]:
        """Each unit as a batch of its own, its rows as short as it allows."""
        pool = pool or self.pool
        for unit in units:
            size = int(pool.offsets("tokens")[unit + 1] - pool.offsets("tokens")[unit])
            if not size:
                raise BadInput(f"Unit {unit} has no tokens, so a step on it means nothing.")
            packed = pack(np.array([size]), min(size, self.length))
            yield build_batch(pool, placed(pool, np.array([unit]), packed), packed.rows, packed.row_length)

    def influences(self, units: np.ndarray, reference: Sequence[Batch], order: Order = "step",
                   pool: Any = None) -> np.ndarray:
        """I of each unit on the reference, float64 (n,): by a true step, to first order unit by unit, or to first order
        in whole batches."""
        if order == "batched":
            return self._batched(np.asarray(units), reference, pool)
        return self.effects(self.unit_batches(units, pool), reference, order)

    def effects(self, batches: Iterator[Batch] | Sequence[Batch], reference: Sequence[Batch],
                order: Order = "step") -> np.ndarray:
        """The same for any batches, each a step of its own."""
        with self._untouched():
            if order == "first":
                slopes = self._slopes(reference)
                return np.array([self._first_order(batch, slopes) for batch in batches])
            before = self._reference_loss(reference)
            self.fence()
            snapshot = Snapshot(self.learner, self.optimizer)
            try:
                return np.array([self._after_step(batch, reference, snapshot) - before for batch in batches])
            finally:
                snapshot.restore()

    def agreement(self, units: np.ndarray, reference: Sequence[Batch], pool: Any = None,
                  order: Order = "first") -> float:
        """Spearman's rank correlation of first-order values with those of true steps."""
        both = [self.influences(units, reference, one, pool) for one in ("step", order)]
        return spearman(both[0], both[1])

    def _batched(self, units: np.ndarray, reference: Sequence[Batch], pool: Any) -> np.ndarray:
        if self.settings.precision in ("fp8", "coat"):
            raise BadInput("Influences in whole batches are small differences of losses, which FP8 layers round off: "
                           "choose `influence: first`, or train in bf16 or fp32.")
        with self._untouched():
            slopes = self._slopes(reference)
            fall = sum(float((slope * p.grad).sum(dtype=torch.float64)) for p, slope in slopes.items()
                       if p.grad is not None)
            if not fall > 0:
                return np.zeros(len(units))
            scale, losses = NUDGE / fall, []
            self.fence()
            kept, self.precision = {p: p.detach().clone() for p in slopes}, "fp32"
            try:
                for sign in (-1, 1):
                    with torch.no_grad():
                        for p, slope in slopes.items():
                            p.copy_(kept[p] + sign * scale * slope)
                    losses.append(self.losses(units, pool))
            finally:
                self.precision = self.settings.precision
                with torch.no_grad():
                    for p, before in kept.items():
                        p.copy_(before)
            return (losses[0] - losses[1]) / (2 * scale)

    def _packed(self, units: np.ndarray, pool: Any) -> Iterator[tuple[np.ndarray, Batch]]:
        """Batches of packed rows; for each piece of a batch its place in `units`."""
        pool, rows = pool or self.pool, self.settings.micro_rows
        offsets = pool.offsets("tokens")
        packed = pack(offsets[units + 1] - offsets[units], self.length)
        pieces = placed(pool, units, packed)
        for first in range(0, packed.rows, rows):
            last = min(first + rows, packed.rows)
            low, high = np.searchsorted(packed.row, [first, last])
            yield packed.item[low:high], build_batch(pool, pieces.rows(first, last), last - first, self.length)

    def _loss(self, batch: Batch, share: float = 1.0) -> Loss:
        """The loss of a batch; `share` of a training step's FLOPs is counted."""
        device = self.settings.device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with autocast(self.precision, device):
            loss = self.learner.loss(self.update, batch, seeded("probe", device=device))
        if loss.couples != "none":
            raise BadInput("This objective couples the units of a batch, so a single unit has no loss of its own to "
                           "probe. Choose a selector and a weigher that do not ask the model.")
        flops = self.learner.flops(batch) or 0.0
        if "unit_index" in batch:  # a row of the probe may be shorter than those the learner counts
            flops *= batch["unit_index"].shape[1] / self.length
        self._count(flops * share)
        return loss

    def _count(self, flops: float) -> None:
        self.spent += flops
        self.spend(flops)

    @torch.no_grad()
    def _reference_loss(self, reference: Sequence[Batch]) -> float:
        losses = [self._loss(batch, 1 / 3) for batch in reference]
        return sum(float(one.total.double().sum()) for one in losses) / sum(float(one.count.sum()) for one in losses)

    def _after_step(self, batch: Batch, reference: Sequence[Batch], snapshot: "Snapshot") -> float:
        snapshot.restore()
        self._gradient([batch])
        self._clip()
        self.optimizer.step()
        return self._reference_loss(reference)

    def _gradient(self, batches: Sequence[Batch]) -> None:
        """Leave the gradient of the mean loss a token of the batches in the parameters."""
        self.learner.modules.zero_grad(set_to_none=True)
        whole = sum(float(self.learner.count(self.update, batch).sum()) for batch in batches)
        for batch in batches:
            loss = self._loss(batch)
            terms = sum(loss.terms.values(), torch.zeros((), device=loss.total.device))
            (loss.total.sum() / whole + terms / len(batches)).backward()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters(), self.settings.clip or float("inf"))

    def _slopes(self, reference: Sequence[Batch]) -> dict[Tensor, Tensor]:
        """s * g_R of each parameter."""
        self._gradient(reference)
        return {p: rate * p.grad for p, rate in rates(self.optimizer) if p.grad is not None}

    def _first_order(self, batch: Batch, slopes: dict[Tensor, Tensor]) -> float:
        self._gradient([batch])
        self._clip()
        return -sum(float((slope * p.grad).sum(dtype=torch.float64)) for p, slope in slopes.items()
                    if p.grad is not None)

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Put gradients, training mode and the global random state back after the block."""
        modules = self.learner.modules
        training = [(module, module.training) for module in modules.modules()]
        gradients = [(p, p.grad) for p in modules.parameters()]
        devices = [self.settings.device] if self.settings.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                for module, mode in training:
                    module.training = mode
                for parameter, gradient in gradients:
                    parameter.grad = gradient


def placed(pool: Any, units: np.ndarray, packed: Packed) -> Pieces:
    """The pieces of packed units; where the units are a task, what is context alone is not predicted."""
    pieces = place_pieces(pool, units, packed)
    if not hasattr(pool, "skip"):
        return pieces
    return replace(pieces, skip=np.clip(pool.skip[units][packed.item] - packed.start, 0, packed.length))


class Snapshot:
    """Copies of everything that a step changes: weights, buffers, the learner's own state, the optimizer's state."""

    def __init__(self, learner: Learner, optimizer: torch.optim.Optimizer):
        self.live = [*learner.modules.parameters(), *learner.modules.buffers(), *learner.state.values()]
        self.kept = [tensor.detach().clone() for tensor in self.live]
        self.optimizers = [(one, {p: {key: copied(value) for key, value in state.items()}
                                  for p, state in one.state.items()}) for one in flat(optimizer)]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, kept in zip(self.live, self.kept, strict=True):
            tensor.copy_(kept)
        for optimizer, kept_states in self.optimizers:
            for parameter in [p for p in optimizer.state if p not in kept_states]:
                del optimizer.state[parameter]  # a state that the probe's step was the first to make
            for parameter, kept_state in kept_states.items():
                _restore(optimizer.state[parameter], kept_state)


def _restore(state: dict[str, Any], kept: dict[str, Any]) -> None:
    for key in [key for key in state if key not in kept]:
        del state[key]
    for key, value in kept.items():
        if isinstance(value, Tensor) and isinstance(state.get(key), Tensor) and state[key].shape == value.shape:
            state[key].copy_(value)
        else:
            state[key] = copied(value)


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def flat(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The plain optimizers that an optimizer of several parts consists of."""
    return [one for part in optimizer.parts for one in flat(part)] if hasattr(optimizer, "parts") else [optimizer]


def rates(optimizer: Any) -> Iterator[tuple[Tensor, Tensor | float]]:
    """For each parameter how far a unit of gradient moves it in the next step: with Adam's second moments at hand
    lr (1 - b1) / (1 - b1^(t+1)) / (sqrt(v / (1 - b2^t)) + eps), else lr."""
    for one in flat(optimizer):
        for group in one.param_groups:
            for parameter in group["params"]:
                state = one.state.get(parameter, {})
                rate: Tensor | float = group["lr"]
                if hasattr(one, "moments") and state:  # stored in FP8
                    state = {"step": state["step"], "exp_avg_sq": one.moments(parameter)[1]}
                if "exp_avg_sq" in state and "betas" in group:
                    first, second = group["betas"]
                    done = float(state["step"])
                    spread = (state["exp_avg_sq"] / (1 - second**done)).sqrt() + group["eps"]
                    rate = group["lr"] * (1 - first) / (1 - first**(done + 1)) / spread
                yield parameter, rate
