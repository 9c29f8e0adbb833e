"""What the loop asks of its parts, and the settings and the progress of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from tilth.objectives.loss import Batch

if TYPE_CHECKING:
    from tilth.train.loop import Loop


class Stream(Protocol):
    """Where batches come from; rows of successive calls are the same however they are grouped into calls. Among several
    processes, `next` gives this one its rows, and `observe` is told of the units of all."""

    def next(self, rows: int) -> Batch: ...

    def observe(self, unit_id: Tensor, loss: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Judge(Protocol):
    """Decides whether an update that was worked out may be taken; see `tilth.train.stability`. It may put the learner
    and the optimizers back to an earlier state, but not the stream."""

    def allows(self, loop: "Loop", update: str, loss: float, gradient_norm: float) -> bool: ...

    def figures(self) -> dict[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Hook = Callable[["Loop"], dict[str, Any] | None]
Figures = Callable[[], dict[str, float]]


@dataclass
class Every:
    """A hook called after every `steps` steps and after the last; what it returns becomes a line of the metrics. One
    with an attribute `score` (lower is better) says by it which checkpoint is the best."""

    steps: int
    hook: Hook


@dataclass
class LoopSettings:
    """steps: the step to end at; rows: of a global batch; micro_rows: of one forward pass of one process;
    batch_tokens: positions of a step; first_step, tokens_before: where the run began, if it branched from another."""

    steps: int
    rows: int
    micro_rows: int
    seed: int = 0
    clip: float | None = 1.0
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint_seconds: float = 120.0
    checkpoint_steps: int | None = None
    batch_tokens: int = 1
    first_step: int = 0
    tokens_before: float = 0.0


@dataclass
class Progressed:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
