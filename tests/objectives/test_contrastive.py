"""The contrastive loss: equal to the formula of the paper, what repeats change, and that nobody may probe it."""

import pytest
import torch
from torch.nn import functional as F

from tilth.models.two_tower import TwoTowerConfig
from tilth.objectives.contrastive import Contrastive, GatheredContrastive
from tilth.optim import AdamW, Constant
from tilth.recipe import BadInput
from tilth.select.probe import Probe
from tilth.train import Learner, Loop, LoopSettings

ROWS = 6


def batch_of(tokens):
    rng = torch.Generator().manual_seed(0)
    count = len(tokens)
    return {"pixels": torch.randint(0, 256, (count, 4, 4, 1), dtype=torch.uint8, generator=rng),
            "tokens": torch.tensor(tokens), "held": torch.ones(count, 2, dtype=torch.bool),
            "unit_id": torch.arange(count), "source": torch.zeros(count, dtype=torch.int64),
            "weight": torch.ones(count)}


class Fixed:
    """A model whose logits are given."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, pixels, tokens, held):
        return self.logits

    def scale(self):
        return torch.tensor(1.0)


def loss_of(logits, tokens):
    return Contrastive()(Fixed(logits), batch_of(tokens), torch.Generator(), {})


def test_without_repeats_it_is_the_loss_of_the_paper():
    logits = torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(1))
    loss = loss_of(logits, [[at, 1] for at in range(ROWS)])
    target = torch.arange(ROWS)
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert loss.total.mean() == pytest.approx(wanted.item(), rel=1e-6) and loss.count.tolist() == [1] * ROWS
    assert loss.couples == "batch"


def test_equal_captions_are_no_negatives_of_each_other():
    """Pairs 0 and 1 have one caption: the loss is least where they share their probability."""
    tokens = [[3, 1], [3, 1], [4, 1]]
    right = torch.tensor([[9.0, 9, -9], [9, 9, -9], [-9, -9, 9]])
    loss = loss_of(right, tokens)
    assert loss.total.tolist() == pytest.approx([0.6931472] * 2 + [0], abs=1e-3)
    only_one = loss_of(torch.tensor([[9.0, -9, -9], [-9, 9, -9], [-9, -9, 9]]), tokens)
    assert (only_one.total[:2] > loss.total[:2] + 5).all() and only_one.figures["matched"] == 1


def test_padding_does_not_make_captions_differ():
    batch = batch_of([[3, 0], [3, 5]])
    batch["held"][:, 1] = False
    loss = Contrastive()(Fixed(torch.zeros(2, 2)), batch, torch.Generator(), {})
    assert loss.figures["matched"] == 1 and loss.total.tolist() == pytest.approx([0.6931472] * 2)


@pytest.mark.parametrize("order", ["step", "first"])
def test_the_probe_refuses_it(order):
    config = TwoTowerConfig(image_shape=(4, 4, 1), vocab_size=9, caption_length=2)
    learner = Learner(config.build().initialize(0), Contrastive(), flops_per_row=config.flops_per_row())
    optimizers = {"main": AdamW().build(learner.parameter_groups("main"))}
    before = {name: value.clone() for name, value in learner.modules.state_dict().items()}
    probe, batch = Probe(learner, optimizers, LoopSettings(steps=1, rows=3, micro_rows=3)), batch_of([[1, 2], [3, 4]])
    with pytest.raises(BadInput, match="couples the units of a batch"):
        probe.effects([batch], [batch], order)
    assert all(torch.equal(value, before[name]) for name, value in learner.modules.state_dict().items())


def trained(objective, micro_rows, weights=None):
    """The loop's loss, figures and gradient norm over three steps, and the weights it ends with."""
    config = TwoTowerConfig(image_shape=(4, 4, 1), vocab_size=9, caption_length=2)
    learner = Learner(config.build().initialize(0), objective, flops_per_row=config.flops_per_row())
    tokens = torch.randint(1, 9, (ROWS, 2), generator=torch.Generator().manual_seed(5)).tolist()
    whole = {**batch_of([*tokens[:-1], tokens[0]]), **({} if weights is None else {"weight": torch.tensor(weights)})}

    class Same:
        """The same six pairs every step."""
        at = 0

        def next(self, rows):
            part = {name: value[self.at:self.at + rows] for name, value in whole.items()}
            self.at = (self.at + rows) % ROWS
            return part

        def observe(self, unit_id, loss): ...
        def state_dict(self): return {}
        def load_state_dict(self, state): ...

    smooth = AdamW(lr=0.1, epsilon=1.0)  # not the sign of gradients that are nearly 0
    loop = Loop(learner, Same(), {"main": smooth.build(learner.parameter_groups("main"))}, Constant(warmup=0),
                LoopSettings(steps=3, rows=ROWS, micro_rows=micro_rows), None_(), None_())
    lines = [loop.step() for _ in range(3)]
    return lines, torch.cat([one.detach().flatten() for one in learner.modules.parameters()])


class None_:
    """Checkpoints and metrics of a loop that is only stepped."""
    newest = None


@pytest.mark.parametrize("weights", [None, [1.0, 2, 0.5, 1, 3, 0.25]])
@pytest.mark.parametrize("micro_rows", [1, 2, 6])
def test_gathered_parts_give_the_gradient_of_the_whole_batch(micro_rows, weights):
    wanted, end = trained(Contrastive(), ROWS, weights)
    found, gathered = trained(GatheredContrastive(), micro_rows, weights)
    for a, b in zip(found, wanted, strict=True):
        for name in ("loss", "gradient_norm", "matched", "scale"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name
        assert a["flops"] == pytest.approx(b["flops"] * 4 / 3), "the first pass is counted"
    assert torch.allclose(gathered, end, atol=1e-5)


def test_a_batch_that_is_split_without_looking_first_is_refused():
    with pytest.raises(BadInput, match="couples the units of a batch"):
        trained(Contrastive(), 2)


def test_a_pair_of_weight_0_is_a_negative_that_learns_nothing():
    lines, _ = trained(GatheredContrastive(), 2, [1.0, 1, 1, 1, 1, 0])
    assert all(torch.isfinite(torch.tensor(line["gradient_norm"])) for line in lines)
