"""Causal loss against a plain reference, unit by unit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tilth.models import TransformerConfig
from tilth.objectives import Causal, sum_by_unit

VOCABULARY = 13
RNG = torch.Generator()


def model():
    config = TransformerConfig(vocab_size=VOCABULARY, layers=2, width=16, heads=2, context=16)
    return config.build().initialize(1).double()


def packed(units: list[list[int]], rows: list[list[int]], length: int) -> dict[str, torch.Tensor]:
    """Units (lists of ids) packed in `rows` (lists of units), with 0 as the id before each unit's first."""
    batch = {name: torch.full((len(rows), length), value) for name, value in
             (("tokens", 0), ("targets", -100), ("unit_index", -1), ("positions", 0))}
    for row, members in enumerate(rows):
        at = 0
        for unit in members:
            ids = torch.tensor(units[unit])
            part = slice(at, at + len(ids))
            batch["tokens"][row, part] = torch.tensor([0, *units[unit][:-1]])
            batch["targets"][row, part] = ids
            batch["unit_index"][row, part] = unit
            batch["positions"][row, part] = torch.arange(len(ids))
            at += len(ids)
    return batch | {"unit_id": torch.arange(len(units)), "weight": torch.ones(len(units))}


def reference(net, unit: list[int]) -> torch.Tensor:
    logits = net(torch.tensor([[0, *unit[:-1]]]))[0]
    return F.cross_entropy(logits, torch.tensor(unit), reduction="sum")


UNITS = [[3, 4, 5], [1], [7, 7, 2, 9, 12], [6, 0], [11, 10, 8, 1]]
ROWS = [[0, 1, 3], [2], [4]]


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_loss_of_each_packed_unit_is_that_of_the_unit_alone(z_loss):
    net, batch = model(), packed(UNITS, ROWS, 7)
    loss = Causal(z_loss=z_loss)(net, batch, RNG, {})
    expected = torch.stack([reference(net, unit) for unit in UNITS])
    tolerance = {"rtol": 1e-12, "atol": 0} if z_loss == 0 else {"rtol": 1e-6, "atol": 0}  # its logits are float32
    torch.testing.assert_close(loss.total.double(), expected, **tolerance)
    assert loss.count.tolist() == [3, 1, 5, 2, 4]
    assert loss.couples == "none"
    assert torch.equal(Causal().count(batch), loss.count)


def test_z_loss_is_the_mean_square_of_the_normaliser_over_predicted_tokens():
    net, batch = model(), packed(UNITS, ROWS, 7)
    logits = net(batch["tokens"], segments=batch["unit_index"], positions=batch["positions"])
    expected = torch.logsumexp(logits[batch["targets"] != -100], -1).square().mean()
    term = Causal(z_loss=0.25)(net, batch, RNG, {}).terms["z_loss"]
    torch.testing.assert_close(term.double(), 0.25 * expected, rtol=1e-5, atol=0)
    assert Causal()(net, batch, RNG, {}).terms == {}


def test_micro_batch_without_a_prediction_gives_zero_not_nan():
    net, batch = model(), packed([[1, 2]], [[0]], 4)
    batch["targets"][:] = -100
    for z_loss in (0.0, 0.1):
        loss = Causal(z_loss=z_loss)(net, batch, RNG, {})
        (loss.total.sum() + sum(loss.terms.values())).backward()
        assert loss.total.tolist() == [0.0] and loss.count.tolist() == [0.0]
        assert all(torch.isfinite(one.grad).all() for one in net.parameters() if one.grad is not None)


def test_context_only_positions_are_not_counted():
    net, batch = model(), packed([[1, 2, 3, 4]], [[0]], 4)
    batch["targets"][0, :2] = -100
    loss = Causal()(net, batch, RNG, {})
    logits = net(torch.tensor([[0, 1, 2, 3]]))[0]
    torch.testing.assert_close(loss.total[0], F.cross_entropy(logits[2:], torch.tensor([3, 4]), reduction="sum"))
    assert loss.count.tolist() == [2]


@settings(deadline=None)
@given(st.data())
def test_sum_by_unit_equals_a_loop_over_units_and_ignores_padding(data):
    units, rows, length = (data.draw(st.integers(low, 6)) for low in (0, 1, 1))
    index = torch.tensor(data.draw(st.lists(st.integers(-1, units - 1), min_size=rows * length,
                                            max_size=rows * length)), dtype=torch.int64).view(rows, length)
    values = torch.arange(1, rows * length + 1, dtype=torch.float64).view(rows, length).requires_grad_()
    sums = sum_by_unit(values, index, units)
    assert sums.tolist() == [values[index == unit].sum().item() for unit in range(units)]
    sums.sum().backward()
    assert torch.equal(values.grad, (index >= 0).double())
