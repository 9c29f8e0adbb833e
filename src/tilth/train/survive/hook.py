"""Snapshots as part of a loop: a hook after every step, a fence before its updates, a source of the state to begin
from. The loop itself knows nothing of them."""

from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from tilth.optim.spread import local
from tilth.recipe.errors import Interrupted
from tilth.train.checkpoint import Layout, path_of
from tilth.train.loop import Loop, parts_of
from tilth.train.protocols import Every
from tilth.train.survive.exchange import OfProcesses
from tilth.train.survive.members import Survive
from tilth.train.survive.snapshots import Snapshots


class Surviving:
    """A context around `loop.run()`, in which the loop takes snapshots and goes on from the newest.

    folder: of the stage. Managers end with the run, or when it stops after a checkpoint (Interrupted); whatever else
    ends it, they stay for the run that goes on.
    """

    def __init__(self, settings: Survive, loop: Loop, folder: Path):
        self.settings, self.loop = settings, loop
        self.snapshots = Snapshots(settings, OfProcesses(loop.processes), folder, loop.checkpoints.identity,
                                   lambda tensor: tensor.data_ptr() in self._moving,
                                   lambda tensor: tensor.data_ptr() in self._shared)
        self._moving: set[int] = set()
        self._shared: set[int] = set()
        loop.newest = self.newest
        loop.hooks.append(Every(1, self.after_step))
        loop.fences.append(self.snapshots.fence)
        loop.figures.append(self.snapshots.figures)

    def newest(self, layout: Layout) -> dict[str, Any] | None:
        """The newest state, in memory or on disk."""
        checkpoints, processes = self.loop.checkpoints, self.loop.processes
        step = processes.tell(max(checkpoints.steps(), default=None) if processes.main else None)
        return self.snapshots.restore(step, lambda: checkpoints.newest(layout), layout, path_of)

    def after_step(self, loop: Loop) -> None:
        """The last of the hooks, so that what the others wrote of this step is in the metrics."""
        self.snapshots.beat(loop.at.step)
        if loop.at.step % self.settings.snapshot_steps == 0 and loop.at.step < loop.settings.steps:
            self.take(loop)

    def take(self, loop: Loop) -> None:
        """Begin a snapshot of the loop as it is."""
        self._moving = moved_by_optimizers(loop)
        frozen = {parameter.data_ptr() for parameter in map(local, loop.learner.modules.parameters())}
        self._shared = self._moving | frozen
        self.snapshots.begin(loop.at.step, loop.state())

    def __enter__(self) -> "Surviving":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.snapshots.close(over=kind is None or issubclass(kind, Interrupted))


def moved_by_optimizers(loop: Loop) -> set[int]:
    """Addresses of the parameters and moments that only an optimizer's step changes, behind the fence. They and the
    other parameters are the same on every rank; buffers, queues and random states need not be."""
    found = set()
    for name, optimizer in loop.optimizers.items():
        for _, part in parts_of(optimizer, name):
            states = [value for state in part.state.values() for value in state.values()]
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            found |= {local(value).data_ptr() for value in [*parameters, *states] if isinstance(value, Tensor)}
    return found
