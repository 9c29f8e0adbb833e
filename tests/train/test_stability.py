"""The guard against spikes: planted spikes are skipped, rolled back or told of; resumption is exact."""

import json
import math

import pytest
import torch
from train_toys import PackedRows, curve, make_loop, same, text_learner, weights

from tilth.recipe import Interrupted, RunFailed
from tilth.recipe.files import read_json_lines
from tilth.train import Every, MetricsLog
from tilth.train.stability import Stability, middle_and_spread

STEPS, QUIET = 40, {"begin": 8, "window": 16}


class Planted(PackedRows):
    """Rows whose loss is made huge (or not a number) in some steps, by `factor` of their weights."""

    def __init__(self, spikes: dict[int, float], rows: int = 4):
        super().__init__()
        self.spikes, self.per_step = spikes, rows

    def next(self, rows):
        step = self.at // self.per_step
        return super().next(rows) | {"factor": torch.tensor(self.spikes.get(step, 1.0))}


def learner():
    """The text learner, whose loss is multiplied by the batch's `factor`."""
    one = text_learner()
    plain = one.loss

    def loss(update, batch, rng):
        found = plain(update, batch, rng)
        found.total = found.total * batch["factor"]
        return found

    one.loss = loss
    return one


def run(folder, spikes, hooks=(), steps=STEPS, **fields):
    loop = make_loop(folder, learner(), Planted(spikes), steps=steps, rows=4, micro_rows=4, hooks=list(hooks),
                     clip=None)
    loop.judge = Stability(**{**QUIET, **fields}).build()
    loop.run()
    return loop


def lines(folder):
    return {line["step"]: line for line in read_json_lines(folder / "metrics.jsonl")}


def trace():
    """Weights after each step, as a hook and the list that it fills."""
    found = {}
    return found, Every(1, lambda loop: found.update({loop.at.step: weights(loop.learner)}))


def test_median_and_deviation():
    assert middle_and_spread([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 1.0)
    assert middle_and_spread([2.0] * 9) == (2.0, 0.002)


@pytest.mark.parametrize("size", [50.0, math.nan, math.inf])
def test_a_planted_spike_is_skipped_counted_and_explained(tmp_path, size):
    seen, hook = trace()
    loop = run(tmp_path, {20: size, 30: size}, [hook])
    found = lines(tmp_path)
    assert [step for step, line in found.items() if "spike" in line] == [21, 31]
    assert loop.judge.spikes == found[STEPS]["spikes"] == 2
    assert found[STEPS]["spike_rate"] == pytest.approx(2 / STEPS)
    assert "loss" in found[21]["spike"] and "skipped" in found[21]["spike"]
    assert same(seen[21], seen[20]) and same(seen[31], seen[30])
    assert not same(seen[22], seen[21])
    if size == 50.0:
        assert "median" in found[21]["spike"] and "of 16 steps" in found[21]["spike"]
        assert found[21]["loss"] > found[20]["loss"] and "not_finite" not in found[21]
    else:
        assert found[21]["loss"] is None and found[21]["not_finite"]["loss"] == str(size)
        assert "not_finite" not in found[22] and math.isfinite(found[22]["loss"])


def test_lines_of_skipped_steps_are_json_for_any_reader_and_stay_so_when_a_run_is_cut_back(tmp_path):
    run(tmp_path, {20: math.nan, 30: math.inf})

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    def strict():
        text = (tmp_path / "metrics.jsonl").read_text()
        return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]

    whole = strict()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.cut_back(25)
    log.close()
    assert strict() == whole[:25] and whole[20]["loss"] is None and whole[20]["gradient_norm"] is None


def test_nothing_is_judged_before_the_guard_has_seen_enough(tmp_path):
    assert run(tmp_path, {5: 50.0}, steps=10).judge.spikes == 0


def test_warn_takes_the_step_and_a_number_that_is_none_still_ends_the_run(tmp_path):
    seen, hook = trace()
    loop = run(tmp_path / "a", {20: 50.0}, [hook], action="warn", steps=22)
    assert loop.judge.spikes == 1 and not same(seen[21], seen[20])
    assert "taken" in lines(tmp_path / "a")[21]["spike"]
    with pytest.raises(RunFailed, match="Step 21 diverged"):
        run(tmp_path / "b", {20: math.nan}, action="warn")


def test_rollback_puts_back_the_last_calm_copy_and_the_data_goes_on(tmp_path):
    seen, hook = trace()
    loop = run(tmp_path, {20: 50.0}, [hook], action="rollback", snapshot_steps=8)
    assert "rolled back to step 16" in lines(tmp_path)[21]["spike"]
    assert same(seen[21], seen[16])
    assert loop.at.step == STEPS and loop.stream.at == STEPS * 4, "no batch is seen twice, no step is lost"


def test_copies_are_not_taken_while_it_is_not_calm(tmp_path):
    run(tmp_path, {20: 50.0, 27: 50.0}, action="rollback", snapshot_steps=8)
    found = lines(tmp_path)
    assert "to step 16" in found[21]["spike"] and "to step 16" in found[28]["spike"]


@pytest.mark.parametrize("action", ["skip", "rollback"])
@pytest.mark.parametrize("stop", [19, 21, 26])
def test_resuming_is_exact_around_a_spike(tmp_path, action, stop):
    spikes, more = {20: 50.0, 27: 30.0}, {"action": action, "snapshot_steps": 8}
    whole = run(tmp_path / "whole", spikes, **more)

    def ask(loop):
        if loop.at.step == stop:
            import signal
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(tmp_path / "parts", spikes, [Every(1, ask)], **more)
    again = run(tmp_path / "parts", spikes, **more)
    assert same(weights(again.learner), weights(whole.learner))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert [line.get("spike") for line in lines(tmp_path / "parts").values()] == [
        line.get("spike") for line in lines(tmp_path / "whole").values()]
    assert again.judge.spikes == whole.judge.spikes == 2


def test_many_spikes_on_end_end_the_run(tmp_path):
    with pytest.raises(RunFailed, match=r"4th spike on end.*stability\.patience"):
        run(tmp_path, dict.fromkeys(range(20, 40), math.nan), patience=3)


def test_a_new_level_is_accepted_within_half_a_window(tmp_path):
    loop = run(tmp_path, dict.fromkeys(range(20, 60), 3.0), patience=16, steps=60)
    assert 0 < loop.judge.spikes <= 10
    assert "spike" not in lines(tmp_path)[60]
