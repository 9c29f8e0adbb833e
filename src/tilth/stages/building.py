"""What a pretrain stage builds before its first step: model, learner, budget; shared with `tilth plan`."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from tilth.models import ModelConfig
from tilth.objectives import Batch, Objective
from tilth.optim import OptimizerConfig
from tilth.recipe.frame import Config
from tilth.select.planning import steps_within
from tilth.train.device import SavedBytes, autocast
from tilth.train.learner import Learner
from tilth.train.loop import seeded


class Budget(Config):
    """How long to train; where several are given, the smallest counts. minutes becomes tokens once, before step 0, by
    a measured probe, and is written down. before: FLOPs that were spent on what the run reads (a ladder of models,
    scores made elsewhere); they are part of the run's FLOPs, and `flops` pays for them too."""

    tokens: float | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    flops: float | None = Field(None, gt=0)
    minutes: float | None = Field(None, gt=0)
    before: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> "Budget":
        if not any((self.tokens, self.epochs, self.steps, self.flops, self.minutes)):
            raise ValueError("give at least one of tokens, epochs, steps, flops, minutes")
        if self.flops and self.before >= self.flops:
            raise ValueError(f"the {self.before:g} FLOPs spent before leave nothing of {self.flops:g} to train with")
        return self

    def in_tokens(self, batch_tokens: float, flops_per_token: float, pool_tokens: int | None,
                  seconds_per_step: float | None) -> float:
        """Tokens of the run, not rounded to whole steps; at least those of a step."""
        left = self.flops and (self.flops - self.before) / flops_per_token
        limits = [self.steps and self.steps * batch_tokens, self.tokens, left,
                  self.epochs and pool_tokens and self.epochs * pool_tokens,
                  self.minutes and seconds_per_step and 60 * self.minutes / seconds_per_step * batch_tokens]
        return max(min((float(limit) for limit in limits if limit), default=batch_tokens), batch_tokens)

    def in_steps(self, batch_tokens: int, flops_per_step: float, pool_tokens: int | None,
                 seconds_per_step: float | None) -> int:
        """The number of optimizer steps, at least 1, of a run whose policy asks the model nothing."""
        left = self.flops and steps_within(self.flops - self.before, flops_per_step, lambda steps: 0.0)
        limits = [self.steps, self.tokens and self.tokens / batch_tokens, left,
                  self.epochs and pool_tokens and self.epochs * pool_tokens / batch_tokens,
                  self.minutes and seconds_per_step and 60 * self.minutes / seconds_per_step]
        given = [float(limit) for limit in limits if limit]
        return max(1, math.floor(min(given))) if given else 1

    def without_flops(self) -> "Budget | None":
        """What else limits the run, if anything."""
        others = any((self.tokens, self.epochs, self.steps, self.minutes))
        return self.model_copy(update={"flops": None}) if others else None


def build_learner(model_config: ModelConfig, objective: Objective, vocab_size: int, length: int, seed: int) -> Learner:
    """The model, initialised from `seed`, under `objective`; the configuration gets the tokenizer's vocabulary."""
    config = with_vocabulary(model_config, vocab_size)
    model = config.build().initialize(seed)
    return Learner(model, objective, flops_per_row=length * config.flops_per_token(length))


def with_vocabulary(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """`config` with the tokenizer's vocabulary, unless it already sets one that is at least as large."""
    given = getattr(config, "vocab_size", None)
    return config if given and given >= vocab_size else config.model_copy(update={"vocab_size": vocab_size})


def counted(model: nn.Module) -> tuple[int, int]:
    """Numbers of all parameters that a model holds, adapters among them, and of those that are trained."""
    parameters = list(model.parameters())
    return sum(one.numel() for one in parameters), sum(one.numel() for one in parameters if one.requires_grad)


@dataclass
class Probe:
    """A short measurement of training steps: seconds of a micro-batch (forward and backward) and of an optimizer
    update, bytes that one row keeps for its backward pass, bytes of the optimizer's state."""

    micro_rows: int
    micro_seconds: float
    update_seconds: float
    row_bytes: int
    state_bytes: int

    def seconds_per_step(self, rows: float) -> float:
        return rows / self.micro_rows * self.micro_seconds + self.update_seconds


def random_batch(vocab_size: int, rows: int, length: int, device: torch.device) -> Batch:
    """Rows of one unit each with random tokens: the shape of a real batch, for timing."""
    tokens = torch.randint(0, vocab_size, (rows, length), generator=seeded("probe")).to(device)
    index = torch.arange(rows, device=device)
    return {"tokens": tokens, "targets": tokens, "unit_index": index[:, None].expand(rows, length).contiguous(),
            "positions": torch.arange(length, device=device).expand(rows, length).contiguous(), "unit_id": index,
            "source": torch.zeros_like(index), "weight": torch.ones(rows, device=device)}


def probe_speed(learner: Learner, optimizer_config: OptimizerConfig, batch: Batch, precision: str,
                device: torch.device, repeats: int = 4) -> Probe:
    """Time a few steps on `batch`. The learner's weights move: probe one that is thrown away."""
    update = learner.updates[0]
    optimizer = optimizer_config.model_copy(update={"lr": 1e-3}).build(learner.parameter_groups(update))
    rows = batch["unit_id"].shape[0]
    micro, stepping = [], []
    weights = {parameter.untyped_storage().data_ptr() for parameter in learner.modules.parameters()}
    for index in range(repeats):
        start = time.perf_counter()
        with SavedBytes(weights) as saved, autocast(precision, device):
            loss = learner.loss(update, batch, seeded("probe", index, device=device))
        (loss.total.sum() / loss.count.sum()).backward()
        _finish(device)
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _finish(device)
        micro.append(middle - start)
        stepping.append(time.perf_counter() - middle)
    # The first round warms up; the median of the rest is robust against what else the machine does.
    return Probe(rows, sorted(micro[1:])[(repeats - 1) // 2], sorted(stepping[1:])[(repeats - 1) // 2],
                 saved.bytes // rows, state_bytes(optimizer))


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors that an optimizer keeps."""
    parts = getattr(optimizer, "parts", None)
    if parts is not None:
        return sum(map(state_bytes, parts))
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def budget_note(budget: dict[str, Any]) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in budget.items() if value)
