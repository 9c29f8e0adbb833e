"""The micro-batch is chosen by a count, so it is the same on every run; what autograd keeps is counted once."""

import pytest
import torch
from test_accumulation import GatheredTowers
from torch import nn
from train_toys import PackedRows, Pairs, pool_stream, same, text_learner, weights

from tilth.train import micro
from tilth.train.device import SavedBytes, matmul_peak
from tilth.train.micro import largest_micro_batch, row_bytes

CPU = torch.device("cpu")


def choose(rows, stream=None):
    return largest_micro_batch(text_learner(), stream or PackedRows(), rows, "fp32", CPU)


def test_choice_is_deterministic_and_leaves_stream_and_model_where_they_were(tmp_path):
    stream, learner = pool_stream(tmp_path / "pool"), text_learner()
    stream.next(3)
    before, state = stream.state_dict(), weights(learner)
    found = {row_bytes(learner, stream, "fp32", CPU) for _ in range(3)}
    assert len(found) == 1 and found.pop() > 0
    assert stream.state_dict() == before
    assert same(weights(learner), state) and all(one.grad is None for one in learner.modules.parameters())


@pytest.mark.parametrize("rows", [1, 7, 12, 30])
@pytest.mark.parametrize("fitting", [0, 1, 4, 5, 6, 11, 1000])
def test_choice_is_the_largest_divisor_that_fits(monkeypatch, rows, fitting):
    one = row_bytes(text_learner(), PackedRows(), "fp32", CPU)
    monkeypatch.setattr(micro, "activation_budget", lambda *_: fitting * one)
    chosen = choose(rows)
    assert rows % chosen == 0
    assert chosen == 1 or chosen <= fitting
    assert all(rows % more or more > fitting for more in range(chosen + 1, rows + 1))


def test_learner_with_a_first_pass_can_be_measured():
    assert row_bytes(GatheredTowers(), Pairs(), "fp32", CPU) > 0


def test_saved_bytes_counts_each_storage_once_and_leaves_weights_out():
    weight, x = nn.Parameter(torch.randn(8, 8)), torch.randn(4, 8)
    with SavedBytes({weight.untyped_storage().data_ptr()}) as saved:
        hidden = (x @ weight).exp()  # keeps x and its own result
        total = (hidden * hidden).sum() + hidden.view(-1).square().sum()  # keep it again, and a view of it
    assert total.requires_grad
    assert saved.bytes == x.nbytes + hidden.nbytes


def test_saved_bytes_is_proportional_to_rows_and_changes_no_gradient():
    def grads(rows, counted):
        learner, batch = text_learner(), PackedRows(seed=9).next(rows)
        if counted:
            with SavedBytes(set()) as saved:
                loss = learner.loss("main", batch, torch.Generator()).total.sum()
        else:
            saved, loss = None, learner.loss("main", batch, torch.Generator()).total.sum()
        loss.backward()
        return saved, [one.grad for one in learner.modules.parameters() if one.grad is not None]

    (few, plain), (_, counted), (many, _) = grads(4, True), grads(4, False), grads(16, True)
    assert all(torch.equal(one, other) for one, other in zip(plain, counted, strict=True))
    assert 2.5 < many.bytes / few.bytes <= 4.5


def test_a_peak_is_measured_even_where_no_round_fits_the_time():
    assert matmul_peak(CPU, "fp32", seconds=0) > 0
