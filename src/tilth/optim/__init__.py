"""Optimizers, parameter groups and learning-rate schedules."""

from tilth.optim.optimizers import (
           OPTIMIZERS,
           AdamW,
           Muon,
           OptimizerChoice,
           OptimizerConfig,
           ParameterGroup,
           group_parameters,
)
from tilth.optim.schedules import SCHEDULES, WSD, Constant, Cosine, Moment, Power, Schedule, ScheduleChoice

__all__ = ["OPTIMIZERS", "SCHEDULES", "WSD", "AdamW", "Constant", "Cosine", "Moment", "Muon", "OptimizerChoice",
           "OptimizerConfig", "ParameterGroup", "Power", "Schedule", "ScheduleChoice", "group_parameters"]
