"""Mixtures of experts in the loop: what accumulation averages, what the metrics tell, exact resumption, less kept."""

import pytest
import torch
from train_toys import LENGTH, VOCABULARY, PackedRows, curve, make_loop, plain_descent, pool_stream, same, weights

from tilth.models import TransformerConfig
from tilth.objectives import Causal
from tilth.optim import Constant
from tilth.recipe.files import read_json_lines
from tilth.train import Learner, seeded
from tilth.train.parallel import Parallel, ParallelSettings
from tilth.train.processes import Processes


def learner(**experts) -> Learner:
    config = TransformerConfig(vocab_size=VOCABULARY, layers=2, width=16, heads=2, feed_forward=24, context=LENGTH,
                               experts={"count": 4, "active": 2, **experts})
    return Learner(config.build().initialize(0).double(), Causal())


def close(one: dict, other: dict) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-9, atol=1e-11) for name in one)


def test_without_a_balance_loss_micro_batches_change_nothing(tmp_path):
    ends = []
    for micro in (8, 2, 1):
        one = learner(balance=0.0, router_z=0.1)
        plain_descent(tmp_path / str(micro), one, PackedRows(), micro_rows=micro).run()
        ends.append(weights(one))
    assert close(ends[0], ends[1]) and close(ends[0], ends[2])


def test_the_balance_of_a_step_is_that_of_its_micro_batches_averaged_by_their_predictions(tmp_path):
    loop = plain_descent(tmp_path, learner(balance=1.0), PackedRows(), micro_rows=2, steps=1)
    expected, load, predictions, stream, twin = 0.0, 0.0, 0.0, PackedRows(), learner(balance=1.0)
    for place in range(4):
        loss = twin.loss("main", stream.next(2), seeded(place))
        expected += float(loss.terms["balance_loss"].detach()) * float(loss.count.sum())
        load = load + loss.figures["expert_load"].double() * float(loss.count.sum())
        predictions += float(loss.count.sum())
    loop.run()
    line = read_json_lines(tmp_path / "metrics.jsonl")[0]
    assert line["balance_loss"] == pytest.approx(expected / predictions)
    torch.testing.assert_close(torch.tensor(line["expert_load"], dtype=torch.float64), load / predictions)


def test_the_loss_told_is_without_penalties_and_evaluation_drops_nothing(tmp_path):
    plain_descent(tmp_path / "a", learner(balance=0.0, router_z=0.0), PackedRows(), steps=1).run()
    plain_descent(tmp_path / "b", learner(balance=1.0, router_z=1.0), PackedRows(), steps=1).run()
    one, other = (read_json_lines(tmp_path / name / "metrics.jsonl")[0] for name in "ab")
    assert one["loss"] == other["loss"] and one["gradient_norm"] != other["gradient_norm"]
    tight, free = learner(capacity=0.5), learner()
    tight.modules.eval()
    batch = PackedRows().next(4)
    assert torch.equal(tight.loss("main", batch, seeded(0)).total, free.loss("main", batch, seeded(0)).total)


def test_stopped_and_resumed_is_the_same_to_the_bit_and_to_the_line(tmp_path):
    def make(name, steps):
        return make_loop(tmp_path / name, learner(capacity=1.0), pool_stream(tmp_path / "pool"), steps=steps,
                         micro_rows=4, schedule=Constant(warmup=0))
    whole = make("whole", 6)
    whole.run()
    make("pieces", 3).run()
    pieces = make("pieces", 6)
    pieces.run()
    assert same(weights(whole.learner), weights(pieces.learner))
    assert curve(tmp_path / "whole")[3:] == curve(tmp_path / "pieces")[3:]
    told = [[line["expert_load"] for line in read_json_lines(tmp_path / name / "metrics.jsonl")]
            for name in ("whole", "pieces")]
    assert told[0][3:] == told[1][3:]


@pytest.mark.parametrize("remember", ["products", "inputs"])
def test_computing_blocks_again_changes_no_gradient(remember):
    batch, found = PackedRows().next(4), []
    for setting in ("all", remember):
        one = learner(capacity=1.0)
        Parallel(one, Processes(), ParallelSettings(remember=setting))
        loss = one.loss("main", batch, seeded(0))
        (loss.total.sum() + sum(loss.terms.values())).backward()
        found.append([parameter.grad for parameter in one.modules.parameters()])
        assert all(block.feed_forward.take_routed() is None for block in one.modules["model"].blocks)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
