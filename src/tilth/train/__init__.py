"""The learner's protocol, the one loop, checkpoints and metrics.

Names are imported when they are first asked for: snapshot managers live in this room, and must start without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.train.checkpoint import Checkpoints
    from tilth.train.learner import FirstPass, Learner
    from tilth.train.loop import Every, Loop, LoopSettings, Progressed, Stream, seeded
    from tilth.train.metrics import MetricsLog

__all__ = ["Checkpoints", "Every", "FirstPass", "Learner", "Loop", "LoopSettings", "MetricsLog", "Progressed",
           "Stream", "seeded"]

_MODULES = {"Checkpoints": "checkpoint", "FirstPass": "learner", "Learner": "learner", "MetricsLog": "metrics"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'loop')}"), name)
