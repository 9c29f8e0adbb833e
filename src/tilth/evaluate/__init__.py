"""Tasks, scoring, held-out bits per byte and what it is measured against."""

from tilth.evaluate.bits import HeldOutBits, held_out_bits
from tilth.evaluate.continuation import HeldOutCloze, continuation_task
from tilth.evaluate.evaluate import EvaluateConfig, Evaluation, evaluate_model, measure
from tilth.evaluate.likelihood import Likelihood, Request, Scored, windows
from tilth.evaluate.rivals import rivals
from tilth.evaluate.score import Item, Option, OptionScore, Scorer, TaskResult
from tilth.evaluate.statistics import mean, paired_difference, ratio
from tilth.evaluate.tasks import TASKS, FewShot, Task, TaskChoice, load_task

__all__ = ["TASKS", "EvaluateConfig", "Evaluation", "FewShot", "HeldOutBits", "HeldOutCloze", "Item", "Likelihood",
           "Option", "OptionScore", "Request", "Scored", "Scorer", "Task", "TaskChoice", "TaskResult",
           "continuation_task", "evaluate_model", "held_out_bits", "load_task", "mean", "measure",
           "paired_difference", "ratio", "rivals", "windows"]
