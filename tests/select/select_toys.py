"""A small text learner, its optimizer, and a probe over a pool; a scalar learner whose influences are known."""

import torch
from torch import nn

from tilth.models import TransformerConfig
from tilth.objectives import Causal, Loss
from tilth.optim import AdamW
from tilth.optim.optimizers import ParameterGroup
from tilth.select.probe import Probe
from tilth.train import Learner, LoopSettings, seeded

LENGTH = 24


class Spent:
    def __init__(self):
        self.flops = 0.0

    def __call__(self, flops):
        self.flops += flops


def text_learner(vocabulary=50) -> Learner:
    config = TransformerConfig(vocab_size=vocabulary, layers=1, width=16, heads=2, feed_forward=24, context=LENGTH)
    return Learner(config.build().initialize(0), Causal(), flops_per_row=LENGTH * config.flops_per_token(LENGTH))


def text_probe(pool, optimizer=None, lr=1e-2, rows=4, clip=1.0, learner=None):
    learner = learner or text_learner()
    built = (optimizer or AdamW(lr=lr)).build(learner.parameter_groups("main"))
    spent = Spent()
    return Probe(learner, {"main": built}, LoopSettings(steps=1, rows=rows, micro_rows=rows, clip=clip), pool, LENGTH,
                 spent), spent


def train(probe, units, steps=5):
    """A few true steps, so that there are moments."""
    for batch in probe.batches(units)[:steps]:
        loss = probe.learner.loss("main", batch, seeded("train"))
        (loss.total.sum() / loss.count.sum()).backward()
        probe.optimizer.step()
        probe.optimizer.zero_grad()


class Scalar(Learner):
    """loss = (w x - y)^2 / 2 with one weight, from 1."""

    def __init__(self, couples="none"):
        super().__init__(nn.Linear(1, 1, bias=False), Causal(), flops_per_row=1.0)
        nn.init.ones_(self.modules["model"].weight)
        self.couples = couples

    def parameter_groups(self, update):
        return [ParameterGroup("matrices", list(self.modules.parameters()))]

    def count(self, update, batch):
        return torch.ones(len(batch["unit_id"]))

    def loss(self, update, batch, rng):
        guess = self.modules["model"](batch["x"][:, None])[:, 0]
        return Loss((guess - batch["y"]).square() / 2, self.count(update, batch), couples=self.couples)


def sample(x, y):
    return {"unit_id": torch.zeros(1, dtype=torch.int64), "x": torch.tensor([float(x)]), "y": torch.tensor([float(y)])}
