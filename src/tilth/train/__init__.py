"""The learner's protocol, the one loop, checkpoints and metrics."""

from tilth.train.checkpoint import Checkpoints
from tilth.train.learner import FirstPass, Learner
from tilth.train.loop import Every, Loop, LoopSettings, Progressed, Stream, seeded
from tilth.train.metrics import MetricsLog

__all__ = ["Checkpoints", "Every", "FirstPass", "Learner", "Loop", "LoopSettings", "MetricsLog", "Progressed",
           "Stream", "seeded"]
