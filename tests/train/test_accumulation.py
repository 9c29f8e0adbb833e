"""One step over micro-batches is the step over the whole batch, whatever the learner."""

import math

import pytest
import torch
from train_toys import (
    PackedRows,
    Pairs,
    Towers,
    contrast,
    curve,
    make_loop,
    plain_descent,
    pool_stream,
    same,
    text_learner,
    weights,
)

from tilth.objectives import Loss
from tilth.recipe import BadInput, RunFailed


def close(one, other, tolerance):
    return all(torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_accumulation_equals_the_big_batch(tmp_path, micro_rows, z_loss):
    """Units of unequal length and weight; float64, so that nothing but the order of sums differs (with z-loss, whose
    logits are float32, to its rounding)."""
    found = []
    for micro in (8, micro_rows):
        learner = text_learner(torch.float64, z_loss)
        loop = plain_descent(tmp_path / str(micro), learner, PackedRows(seed=3), micro_rows=micro)
        loop.run()
        found.append((weights(learner), curve(tmp_path / str(micro))))
    (big, big_lines), (small, small_lines) = found
    tolerance = 1e-5 if z_loss else 1e-11
    assert close(big, small, tolerance)
    for one, other in zip(big_lines, small_lines, strict=True):
        assert one.keys() == other.keys()
        assert all(math.isclose(one[key], other[key], rel_tol=1e-5) for key in one)
    start = weights(text_learner(torch.float64))
    assert not close(start, big, 1e-3), "three steps at rate 1 must have moved the weights"


def test_step_is_the_gradient_of_the_weighted_mean_over_predictions(tmp_path):
    learner, reference = text_learner(torch.float64), text_learner(torch.float64)
    plain_descent(tmp_path, learner, PackedRows(seed=1), micro_rows=2, steps=1).run()
    batch = PackedRows(seed=1).next(8)
    loss = reference.loss("main", batch, torch.Generator())
    ((batch["weight"] * loss.total).sum() / (batch["weight"] * loss.count).sum()).backward()
    for one, other in zip(learner.modules.parameters(), reference.modules.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), other.detach() - other.grad, rtol=1e-11, atol=1e-12)
    line = curve(tmp_path)[0]
    assert line["loss"] == pytest.approx((loss.total.sum() / loss.count.sum()).item(), rel=1e-6)
    assert line["tokens"] == int(loss.count.sum())
    assert line["padded"] == (batch["unit_index"] < 0).double().mean().item()
    assert line["flops"] == 8 * learner.flops_per_row


def test_rows_of_packed_text_do_not_depend_on_the_size_of_micro_batches(tmp_path):
    runs = []
    for micro in (6, 2):
        learner = text_learner(torch.float64)
        plain_descent(tmp_path / str(micro), learner, pool_stream(tmp_path / "pool"), rows=6, micro_rows=micro,
                      steps=5).run()
        runs.append(weights(learner))
    assert close(*runs, 1e-11)


@pytest.mark.parametrize("micro_rows", [2, 4])
def test_learner_whose_units_couple_cannot_be_split(tmp_path, micro_rows):
    with pytest.raises(BadInput, match="couples the units of a batch"):
        make_loop(tmp_path, Towers(), Pairs(), micro_rows=micro_rows).run()
    make_loop(tmp_path / "whole", Towers(), Pairs()).run()


def test_micro_batch_must_divide_the_batch(tmp_path):
    with pytest.raises(BadInput, match="must divide"):
        make_loop(tmp_path, text_learner(), PackedRows(), rows=8, micro_rows=3)


class Gathered:
    """First pass: embeddings of the whole global batch, and the gradient of the global loss in each of them."""

    def first(self, learner, update, batch, rng):
        assert not torch.is_grad_enabled()
        left, right = learner.embed(batch)
        return {"left": left, "right": right}

    def between(self, results, batches):
        left, right = (torch.cat([one[name] for one in results]).requires_grad_() for name in ("left", "right"))
        weight = torch.cat([batch["weight"] for batch in batches])
        total = contrast(left, right)
        gradients = torch.autograd.grad((weight * total).sum(), [left, right])
        sizes = [len(batch["unit_id"]) for batch in batches]
        columns = zip(total.detach().split(sizes), *(part.split(sizes) for part in gradients), strict=True)
        return [{"global_total": value, "left_gradient": a, "right_gradient": b} for value, a, b in columns]


class GatheredTowers(Towers):
    """The same loss, its value and gradient taken from the gathered embeddings (Gao et al. 2021, gradient cache)."""

    first_pass = Gathered()

    def loss(self, update, batch, rng):
        left, right = self.embed(batch)
        # The loop multiplies by the unit's weight, which the gathered gradient holds already.
        pull = ((left * batch["left_gradient"]).sum(1) + (right * batch["right_gradient"]).sum(1)) / batch["weight"]
        return Loss(batch["global_total"] + pull - pull.detach(), self.count(update, batch), couples="global")


@pytest.mark.parametrize("micro_rows", [1, 2, 8])
def test_contrastive_loss_over_gathered_embeddings_equals_the_big_batch(tmp_path, micro_rows):
    runs = []
    for name, kind, micro in (("big", Towers, 8), ("gathered", GatheredTowers, micro_rows)):
        learner = kind()
        learner.modules.double()
        plain_descent(tmp_path / name, learner, Pairs(seed=1), lr=0.02, micro_rows=micro, steps=5).run()
        runs.append(weights(learner))
    assert close(*runs, 1e-9)
    one, other = (curve(tmp_path / name)[-1]["loss"] for name in ("big", "gathered"))
    assert one == pytest.approx(other, rel=1e-9)


class HardestFirst:
    """First pass that weighs the units of the global batch by a softmax of their losses."""

    def first(self, learner, update, batch, rng):
        loss = learner.loss(update, batch, rng)
        return {"loss": loss.total / loss.count}

    def between(self, results, batches):
        losses = torch.cat([result["loss"] for result in results])
        parts = (len(losses) * losses.softmax(0)).split([len(batch["unit_id"]) for batch in batches])
        return [{"weight": part} for part in parts]


@pytest.mark.parametrize("micro_rows", [1, 4])
def test_weigher_that_looks_at_losses_sees_the_global_batch(tmp_path, micro_rows):
    runs = []
    for micro in (8, micro_rows):
        learner = text_learner(torch.float64)
        loop = plain_descent(tmp_path / str(micro), learner, PackedRows(), micro_rows=micro,
                             first_passes=[HardestFirst()])
        at = loop.run()
        assert at.flops == pytest.approx(3 * 8 * learner.flops_per_row * 4 / 3), "the extra forward pass is counted"
        runs.append(weights(learner))
    assert close(*runs, 1e-11)
    plain = text_learner(torch.float64)
    plain_descent(tmp_path / "plain", plain, PackedRows()).run()
    assert not close(runs[0], weights(plain), 1e-3)


def test_both_passes_get_the_same_random_numbers(tmp_path):
    drawn = []

    class Noisy(Towers):
        def loss(self, update, batch, rng):
            drawn.append(torch.rand(4, generator=rng).tolist())
            return super().loss(update, batch, rng)

    learner = Noisy()
    learner.first_pass = HardestFirst()
    make_loop(tmp_path, learner, Pairs(), steps=2).run()
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3] and drawn[0] != drawn[2]


def test_stream_is_told_every_unit_and_its_mean_loss(tmp_path):
    learner, reference, stream = text_learner(), text_learner(), PackedRows(seed=5)
    make_loop(tmp_path, learner, stream, steps=1, micro_rows=2).run()
    batch = PackedRows(seed=5).next(8)
    loss = reference.loss("main", batch, torch.Generator())
    assert torch.cat([ids for ids, _ in stream.told]).tolist() == batch["unit_id"].tolist()
    torch.testing.assert_close(torch.cat([told for _, told in stream.told]), (loss.total / loss.count).detach())


def test_clipping_scales_the_whole_gradient_down_to_the_limit(tmp_path):
    free, clipped = text_learner(torch.float64), text_learner(torch.float64)
    start = weights(free)
    plain_descent(tmp_path / "free", free, PackedRows(), steps=1).run()
    loop = plain_descent(tmp_path / "clipped", clipped, PackedRows(), steps=1)
    loop.settings.clip = 0.01
    loop.run()
    norm = curve(tmp_path / "free")[0]["gradient_norm"]
    assert norm > 0.01
    assert curve(tmp_path / "clipped")[0]["gradient_norm"] == norm, "the norm before clipping is what is reported"
    for name, tensor in weights(clipped).items():
        torch.testing.assert_close(tensor - start[name], (weights(free)[name] - start[name]) * 0.01 / norm,
                                   rtol=1e-3, atol=1e-9)


def test_gradient_below_the_limit_is_left_alone(tmp_path):
    runs = []
    for clip in (None, 1e6):
        learner = text_learner()
        make_loop(tmp_path / str(clip), learner, PackedRows(), clip=clip).run()
        runs.append(weights(learner))
    assert same(*runs)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_fails_the_run_and_keeps_the_last_checkpoint(tmp_path, what):
    class Diverging(Towers):
        step = 0

        def before_update(self, update, step):
            self.step = step

        def loss(self, update, batch, rng):
            loss = super().loss(update, batch, rng)
            if self.step == 3:
                bad = loss.total * math.inf if what == "loss" else (loss.total - loss.total.detach()).sqrt()
                return Loss(bad, loss.count, couples="batch")
            return loss

    learner = Diverging()
    loop = make_loop(tmp_path, learner, Pairs(), steps=6, checkpoint_steps=3)
    with pytest.raises(RunFailed, match=r"Step 4 diverged.*newest checkpoint"):
        loop.run()
    assert loop.checkpoints.steps() == [3]
    assert same(loop.checkpoints.newest()["learner"]["modules"], dict(learner.modules.state_dict()))
    assert [line["step"] for line in curve(tmp_path)] == [1, 2, 3]


def test_batch_that_weighs_nothing_fails_loudly(tmp_path):
    class Weightless(PackedRows):
        def next(self, rows):
            batch = super().next(rows)
            return batch | {"weight": torch.zeros_like(batch["weight"])}

    with pytest.raises(RunFailed, match="nothing to learn from"):
        make_loop(tmp_path, text_learner(), Weightless()).run()
