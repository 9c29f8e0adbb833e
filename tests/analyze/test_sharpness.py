"""Logit sharpness: worked values, the corner against the box, edges, and the hook's mean over held-out tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tilth.analyze.sharpness import Sharpness, SharpnessHook, sharpness

LOGITS, TARGET = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])


def test_worked_values():
    """Logits (2, 0, -1), target 0: f = 0.16984602; phi 0.0285268 at 5e-4 and 0.0571057 at 1e-3 (30 digits)."""
    for epsilon, expected in ((5e-4, 0.028526814772), (1e-3, 0.057105696461)):
        phi, loss = sharpness(LOGITS, TARGET, epsilon)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-3)), abs=1e-12)
        assert phi.item() == pytest.approx(expected, abs=1e-11)
        assert phi.dtype == loss.dtype == torch.float64


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6), st.integers(0, 5), st.floats(1e-4, 0.5))
def test_the_corner_beats_ten_thousand_points_of_the_box(logits, target, epsilon):
    z, target = torch.tensor(logits, dtype=torch.float64), torch.tensor([target % len(logits)])
    phi, loss = sharpness(z[None], target, epsilon)
    rng = torch.Generator().manual_seed(0)
    inside = (2 * torch.rand(10_000, len(z), generator=rng, dtype=torch.float64) - 1) * epsilon * (z.abs() + 1)
    inside[::2] = inside[::2].sign() * epsilon * (z.abs() + 1)  # half of them are corners
    moved = F.cross_entropy(z + inside, target.expand(10_000), reduction="none")
    assert phi.item() >= (100 * (moved.max() - loss) / (1 + loss)).item() - 1e-9
    assert phi.item() >= 0


def test_no_box_no_sharpness_and_one_logit_none_either():
    assert sharpness(LOGITS, TARGET, 0.0)[0].item() == 0
    assert sharpness(torch.tensor([[5.0]]), TARGET, 0.1)[0].item() == pytest.approx(0)


def test_empty_zero_and_non_finite_logits():
    phi, loss = sharpness(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5e-4)
    assert phi.shape == loss.shape == (0,)
    phi, loss = sharpness(torch.zeros(2, 4), torch.tensor([0, 3]), 5e-4)
    assert loss.tolist() == pytest.approx([math.log(4)] * 2) and (phi > 0).all()
    for bad in (math.nan, math.inf):
        assert sharpness(torch.tensor([[bad, 0.0]]), TARGET, 5e-4)[0].isnan().all()


def test_low_precision_logits_are_worked_on_in_float64():
    assert torch.equal(sharpness(LOGITS.bfloat16(), TARGET, 5e-4)[0], sharpness(LOGITS.double(), TARGET, 5e-4)[0])


def test_steps_between_measurements():
    assert Sharpness(every=0.1).steps(95) == 10 and Sharpness(every=0.001).steps(95) == 1
    assert Sharpness(every=20).steps(95) == 20


class Bigram(torch.nn.Module):
    """Logits of the next token from a table."""

    def __init__(self, vocabulary):
        super().__init__()
        self.output_weight = torch.nn.Parameter(torch.randn(vocabulary, vocabulary,
                                                            generator=torch.Generator().manual_seed(0)))

    def hidden(self, tokens, segments, positions):
        return F.one_hot(tokens, len(self.output_weight)).float()

    def head(self, hidden):
        return hidden @ self.output_weight.T


class Rows:
    """Two batches of a held-out text, some positions without a target."""

    def __init__(self, *_, **__):
        self.seen = 0

    def batches(self, rows):
        for number in range(2):
            self.seen += 1
            tokens = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]]) - number * 0
            targets = torch.tensor([[1, 2, 3, -100], [3 - number, 2, 1, -100]])
            yield {"tokens": tokens, "targets": targets, "unit_index": torch.zeros_like(tokens), "positions": tokens}


@pytest.mark.parametrize(("tokens", "batches"), [(6, 1), (7, 2), (100, 2)])
def test_the_hook_averages_over_predicted_tokens_and_stops_when_it_has_enough(monkeypatch, tokens, batches):
    monkeypatch.setattr("tilth.analyze.sharpness.EvalRows", Rows)
    model = Bigram(5).train()
    hook = SharpnessHook(Sharpness(tokens=tokens), pool=None, length=4)
    phi, loss = hook.measure(model, "fp32", torch.device("cpu"), 2)
    assert hook.rows.seen == batches and model.training
    kept = [(batch["tokens"][batch["targets"] >= 0], batch["targets"][batch["targets"] >= 0])
            for batch, _ in zip(Rows().batches(2), range(batches), strict=False)]
    own = [sharpness(model.output_weight.T[at].detach(), to, 5e-4) for at, to in kept]
    assert phi == pytest.approx(float(torch.cat([one[0] for one in own]).mean()))
    assert loss == pytest.approx(float(torch.cat([one[1] for one in own]).mean()))
