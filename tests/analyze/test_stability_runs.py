"""Outcomes of runs, proportions and their intervals, sensitivity, ranks; what a grid says of its formats."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.analyze.stability import (
    Thresholds,
    chance_to_see,
    count_spikes,
    judge,
    rank_test,
    rate_sensitivity,
    runs_to_see,
    smoothed,
    wilson,
)
from tilth.analyze.stability_grid import Spec, Trained, study, upper_bound
from tilth.recipe import BadInput


def falling(steps=200, start=5.0, end=2.0, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return (end + (start - end) * np.exp(-np.arange(steps) / 20) + noise * rng.standard_normal(steps)).tolist()


def test_a_run_that_falls_converges():
    found = judge(falling(), failed=False)
    assert found.kind == "converged" and not found.failed and found.spikes == 0 and found.diverged_at is None
    assert found.final == pytest.approx(np.mean(falling()[-20:])) and found.first == falling()[0]


def test_a_run_that_rises_at_the_end_has_diverged_and_says_since_when():
    losses = falling()[:150] + [4.0] * 50
    found = judge(losses, failed=False)
    assert found.kind == "diverged" and found.failed and 150 <= found.diverged_at <= 155
    assert judge(falling()[:150] + [2.2] * 50, failed=False).kind != "diverged", "by less than the margin"
    back = falling()[:100] + [4.0] * 30 + falling()[130:]
    assert judge(back, failed=False).kind == "spiking" and judge(back, failed=False).diverged_at is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_diverged_there(bad):
    assert judge([*falling(50), bad, 2.0], failed=False).diverged_at == 50
    found = judge(falling(50), failed=True)
    assert (found.kind, found.final, found.diverged_at) == ("diverged", None, 50)
    assert judge([bad], failed=False).kind == judge([], failed=True).kind == "diverged"
    with pytest.raises(BadInput, match="without a single"):
        judge([], failed=False)


def test_a_run_that_learns_nothing_has_stalled():
    found = judge([5.5 - 0.0005 * step for step in range(200)], failed=False)
    assert found.kind == "stalled" and found.failed and found.final is not None


def test_a_spike_is_counted_and_does_not_hide_a_converged_run():
    losses = falling()
    losses[120] = 6.0
    found = judge(losses, failed=False)
    assert (found.kind, found.spikes) == ("spiking", 1) and not found.failed
    assert count_spikes([2.0] * 100, Thresholds()) == 0, "a constant curve has no deviation to exceed"
    assert count_spikes([2.0] * 20 + [9.0], Thresholds()) == 0, "too early to judge"


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.floats(0.01, 1))
def test_smoothing_is_the_mean_of_the_last_values(values, share):
    window = max(1, round(share * len(values)))
    expected = [np.mean(values[max(0, at + 1 - window):at + 1]) for at in range(len(values))]
    assert smoothed(np.array(values), share) == pytest.approx(expected, abs=1e-9)


def test_wilson():
    assert wilson(18, 188) == pytest.approx((0.061, 0.146), abs=5e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="no proportion"):
        wilson(3, 2)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts):
    k, n = counts
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_what_so_many_runs_can_show():
    """A failure that strikes one run in ten: ten clean runs happen in 35 %; 22 runs see one with 90 %, 29 with 95 %."""
    assert 1 - chance_to_see(0.1, 10) == pytest.approx(0.35, abs=2e-3)
    assert (runs_to_see(0.1, 0.9), runs_to_see(0.1, 0.95)) == (22, 29)


def test_rate_sensitivity():
    assert rate_sensitivity({1.0: 2.0, 2.0: 2.0}, 5.0) == 0
    assert rate_sensitivity({1.0: 2.0, 2.0: 3.0, 4.0: None, 8.0: 9.0}, 5.0) == pytest.approx((0 + 1 + 3 + 3) / 4)
    assert math.isnan(rate_sensitivity({1.0: None}, 5.0))


def test_rank_test():
    share, p = rank_test([3, 4, 5, 6], [1, 2])
    assert share == 1 and p == pytest.approx(0.0526, abs=5e-4), "continuity-corrected normal of U = 8, deviation 2.16"
    assert rank_test([1, 1], [1, 1]) == (0.5, 0.5)
    assert rank_test([1, 2], [3, 4])[1] > 0.9
    assert all(math.isnan(value) for value in rank_test([], [1.0]))


def test_specs():
    assert Spec.parse("fp32").fields() is None and Spec.parse("fp32").bits == 32
    assert Spec.parse("E8M3").fields() == {"forward": "E8M3", "backward": "E8M3"}
    assert Spec.parse("E4M3fn/E5M2:scaled").fields() == {"forward": "E4M3fn", "backward": "E5M2", "scaling": "tensor"}
    assert Spec.parse("E8M3/fp32:truncated").fields() == {"forward": "E8M3", "backward": None, "rounding": "truncate"}
    assert (Spec.parse("E4M3fn/E5M2").bits, Spec.parse("E8M3/fp32").bits, Spec.parse("E8M3").bits) == (8, 32, 12)
    for text in ("E8M3/E5M2/fp32", "E8M3:fast", "fp32:scaled", "fp8", ""):
        with pytest.raises(BadInput):
            Spec.parse(text)


def trained(end, seed=0, **more):
    return Trained(judge(falling(end=end, seed=seed, noise=0.002), failed=False), **more)


def grid(**ends):
    """cells: for each format, {rate: final losses of the seeds}, None for a run that failed."""
    return {(name, rate): [Trained(judge(falling(60), True)) if end is None else trained(end) for end in several]
            for name, by_rate in ends.items() for rate, several in by_rate.items()}


def specs(*names):
    return [Spec.parse(name) for name in names]


def test_the_answer_is_the_safe_format_of_the_fewest_bits_and_says_why_others_are_not():
    cells = grid(fp32={.01: [2.0, 2.1, 2.05], .1: [2.5] * 3}, E8M7={.01: [2.0, 2.1, 2.05], .1: [2.5] * 3},
                 E8M3={.01: [2.001, 2.101, 2.05], .1: [2.5] * 3}, E8M2={.01: [2.2, 2.3, 2.25], .1: [2.6] * 3},
                 E5M2={.01: [2.0, 2.1, 2.05], .1: [2.5, None, 2.5]})
    found = study(specs("fp32", "E8M7", "E8M3", "E8M2", "E5M2"), [.01, .1], cells, tolerance=0.01)
    rows = {row["format"]: row for row in found["formats"]}
    assert found["answer"] == {"format": "E8M3", "bits": 12, "unsafe_below": ["E8M2", "E5M2"]}
    assert found["reference_rate"] == .01
    assert "loss may be" in rows["E8M2"]["because"] and "fail at 0.1" in rows["E5M2"]["because"]
    assert "falls from 0.1 to 0.01" in rows["E5M2"]["because"] and rows["E5M2"]["largest_rate"] == .01
    assert rows["E5M2"]["diverged"] == 1 and rows["E5M2"]["failed_interval"] == pytest.approx(wilson(1, 6))
    assert rows["E8M2"]["excess"] == pytest.approx(0.2 / 2.05, rel=0.02)


def test_a_reference_that_never_converges_makes_nothing_safe():
    cells = grid(fp32={.01: [None, 2.0]}, E8M7={.01: [2.0, 2.0]})
    found = study(specs("fp32", "E8M7"), [.01], cells, tolerance=0.01)
    assert found["answer"] == {"format": None, "bits": None}
    assert "converges at no rate" in found["formats"][1]["because"]


def test_one_seed_cannot_show_that_the_loss_stays():
    cells = grid(fp32={.01: [2.0]}, E8M7={.01: [2.0]})
    found = study(specs("fp32", "E8M7"), [.01], cells, tolerance=0.01)
    assert found["answer"]["format"] == "fp32" and found["formats"][1]["excess_upper"] is None
    assert "two seeds" in found["formats"][1]["because"]


def test_a_cell_whose_median_run_failed_has_no_median():
    found = study(specs("fp32"), [.01, .1], grid(fp32={.01: [2.0, None, None], .1: [2.0, 2.0, None]}), 0.01)
    assert [cell["median"] is None for cell in found["cells"]] == [True, False]
    assert [cell["failed"] for cell in found["cells"]] == [2, 1]


def test_sharpness_is_compared_between_runs_that_diverge_later_and_those_that_never_do():
    bad = judge(falling()[:150] + [4.0] * 50, failed=False)
    runs = [Trained(bad, [(100, 0.5 + 0.1 * k, 3.0), (180, math.nan, 4.0)]) for k in range(4)]
    runs += [trained(2.0, sharpness=[(100, 0.1 + 0.01 * k, 3.0)]) for k in range(4)]
    found = study(specs("fp32"), [.01], {("fp32", .01): runs}, 0.01)["warning"]
    assert found["100"]["sharpness"] == 1 and found["100"]["sharpness_p"] < 0.05 and found["100"]["loss"] == 0.5
    assert found["180"] == {"later": 0, "never": 0, "sharpness": None, "sharpness_p": None, "loss": None,
                            "loss_p": None}


def test_upper_bound_is_students():
    """Mean 2, deviation 1, three values: 2 + 2.920 / sqrt(3)."""
    assert upper_bound([1.0, 2.0, 3.0]) == pytest.approx(2 + 2.920 / math.sqrt(3))
    assert upper_bound([1.0]) == math.inf
