"""The laws' worked values, their domain, fitting, and the published grid (with TILTH_DATA)."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.optim import WSD, AdamW, Cosine, Muon, Power
from tilth.optim.advisor import (
    COST_OF_BATCH,
    COST_OF_LR,
    STEP_LAW_BOOTSTRAP,
    PowerLaw,
    advise,
    cost,
    deepseek_law,
    doubts,
    price,
    step_law,
    three_points,
    whole_rows,
)
from tilth.optim.fitting import Run, excess, fit_step_law, vertex
from tilth.recipe import BadInput


@pytest.mark.parametrize(("parameters", "tokens", "lr", "sequences"), [
    (7e9, 1.4e12, 9.166e-4, 2440.8), (1e9, 1e11, 1.632e-3, 540.9), (6e7, 5e9, 4.837e-3, 97.8)])
def test_step_law_gives_the_worked_values(parameters, tokens, lr, sequences):
    advice = step_law(parameters, tokens)
    assert advice.lr == pytest.approx(lr, rel=5e-4)
    assert advice.batch_tokens / 2048 == pytest.approx(sequences, rel=5e-4)
    assert step_law(7e9, 1.4e12).batch_tokens == pytest.approx(4.999e6, rel=5e-4)


def test_bootstrap_means_give_the_released_tools_values_within_the_rounding_of_their_exponents():
    advice = STEP_LAW_BOOTSTRAP(7e9, 1.4e12)
    assert advice.lr == pytest.approx(9.347e-4, rel=3e-3)
    assert advice.batch_tokens / 2048 == pytest.approx(2439.9, rel=3e-3)


def test_doubling_size_or_tokens_scales_as_published():
    one = step_law(1e9, 1e11)
    assert step_law(2e9, 1e11).lr / one.lr == pytest.approx(0.610, abs=5e-4)
    assert step_law(1e9, 2e11).lr / one.lr == pytest.approx(1.237, abs=5e-4)
    assert step_law(1e9, 2e11).batch_tokens / one.batch_tokens == pytest.approx(1.486, abs=5e-4)
    assert step_law(5e9, 1e11).batch_tokens == one.batch_tokens


@pytest.mark.parametrize(("table", "factor", "expected"), [
    (COST_OF_LR, 0.5, 0.38), (COST_OF_LR, 4, 3.2), (COST_OF_LR, 8, None), (COST_OF_LR, 1, 0),
    (COST_OF_BATCH, 0.25, 1.6), (COST_OF_LR, 2**0.5, 0.365), (COST_OF_BATCH, 100, None)])
def test_cost_of_a_miss_is_interpolated_in_the_logarithm(table, factor, expected):
    found = cost(factor, table)
    assert found is expected is None or found == pytest.approx(expected)


@given(parameters=st.floats(1e4, 1e12), steps=st.integers(1, 10**6))
def test_a_budget_in_steps_has_the_batch_that_the_law_gives_for_the_tokens_it_makes(parameters, steps):
    advice = advise(parameters, lambda batch: steps * batch, Cosine())
    expected = step_law(parameters, steps * advice.batch_tokens).batch_tokens
    assert advice.batch_tokens == pytest.approx(expected, rel=1e-6)
    fixed = advise(parameters, lambda batch: 1e9, Cosine())
    assert (fixed.lr, fixed.batch_tokens) == (step_law(parameters, 1e9).lr, step_law(parameters, 1e9).batch_tokens)


def test_batches_are_whole_rows_and_the_power_schedulers_rate_is_its_cap():
    assert [whole_rows(tokens, 512) for tokens in (1, 700, 800, 5000)] == [512, 512, 1024, 5120]
    assert advise(1e9, lambda batch: 1e11, Power()).lr == 0.02


def doubts_of(parameters, tokens, epochs, schedule, optimizer=None, mup=False, batch_tokens=2**22):
    return doubts(parameters, tokens, epochs, schedule, optimizer or AdamW(), mup, batch_tokens)


def test_doubts_name_what_differs_and_are_silent_on_the_laws_own_ground():
    own = Cosine(floor_lr=1e-5)
    assert doubts_of(4e8, 2e10, 0.5, own) == []
    text = " ".join(doubts_of(3e6, 2e6, 2.5, WSD(), Muon(), mup=True))
    for part in ("3e+06 parameters", "2e+06 tokens are below", "not under `wsd`", "not `muon`", "not muP", "2.5 times"):
        assert part in text
    assert "1e-5" in doubts_of(4e8, 2e10, None, Cosine())[0]


def test_doubts_of_the_power_scheduler_name_parametrization_few_tokens_warmup_and_a_cap_without_end():
    assert doubts_of(4e8, 1e11, None, Power(), mup=True) == []
    assert "only the exponent" in doubts_of(4e8, 1e11, None, Power())[0]
    few, warm = doubts_of(4e8, 5e8, None, Power(), mup=True)
    assert "5e+08" in few and "longer than the run" in warm
    # With 1,024 sequences the cap ends at 2.6e10 tokens, with 128 at 4.4e8.
    [capped] = doubts_of(4e8, 2.5e10, None, Power(), mup=True, batch_tokens=1024 * 4096)
    assert "above the cap" in capped
    assert doubts_of(4e8, 2.7e10, None, Power(), mup=True, batch_tokens=1024 * 4096) == []
    assert doubts_of(4e8, 2.5e10, None, Power(), mup=True, batch_tokens=128 * 4096) == []


def test_the_check_sweeps_the_rate_or_the_power_schedulers_factor():
    assert three_points(2e-3, Cosine()) == "optimizer.lr=0.001,0.002,0.004"
    assert three_points(0.02, Power(a=3)) == "schedule.a=1.5,3,6"


@pytest.mark.parametrize(("chosen", "says"), [(2.1e-3, None), (1e-3, "0.5 times that: about 0.38 %"),
                                              (4e-3, "2 times that: about 0.73 %"),
                                              (0.1, "50 times that: further off")])
def test_a_choice_has_the_price_of_the_published_grid(chosen, says):
    found = price("rate", chosen, 2e-3, COST_OF_LR)
    assert found is says is None or says in found


def grid(law, noise=0.0):
    """Runs on a factor-2 grid whose loss is a bowl around the law's optimum."""
    rng = np.random.default_rng(0)
    runs = []
    for n in (1e6, 4e6, 1.6e7):
        for d in (1e8, 4e8, 1.6e9):
            best = law(n, d)
            for i in range(-3, 4):
                for j in range(-3, 4):
                    loss = 3 + 0.02 * (i * i + j * j) + noise * rng.standard_normal()
                    runs.append(Run(n, d, best.lr * 2.0**i, best.batch_tokens * 2.0**j, loss))
    return runs


def test_fit_recovers_a_planted_law_and_its_intervals_hold_it():
    law = PowerLaw(2.0, -0.7, 0.3, 0.6, 0.5)
    fitted = fit_step_law(grid(law), resamples=100)
    assert (fitted.law.alpha, fitted.law.beta, fitted.law.gamma) == pytest.approx((-0.7, 0.3, 0.5))
    assert max(excess(grid(law), fitted.law).values()) == pytest.approx(0)
    noisy = fit_step_law(grid(law, 0.01), resamples=300)
    for name, value in (("alpha", -0.7), ("beta", 0.3), ("gamma", 0.5)):
        assert noisy.intervals[name][0] < value < noisy.intervals[name][1]


def test_a_coefficient_without_variation_is_fixed_and_too_few_runs_are_refused():
    law = PowerLaw(2.0, -0.7, 0.3, 0.6, 0.5)
    one_size = [run for run in grid(law) if run.parameters == 1e6]
    fitted = fit_step_law(one_size, resamples=50)
    assert fitted.law.alpha == 0 and fitted.intervals["alpha"] == (0, 0)
    assert fitted.law.beta == pytest.approx(0.3)
    with pytest.raises(BadInput, match="at least 3"):
        fit_step_law(one_size[:2])


def test_vertex_of_a_parabola_in_the_logarithm():
    rates = [1e-3 * 2.0**k for k in range(-2, 4)]
    found = vertex(rates, [[2 + 0.1 * np.log(rate / 1.5e-3) ** 2] * 2 for rate in rates])
    assert found is not None and found.inside
    assert found.at == pytest.approx(1.5e-3) == pytest.approx(found.interval[0]) and found.loss == pytest.approx(2)
    assert vertex(rates, [[-np.log(rate) ** 2] for rate in rates]) is None
    assert vertex(rates[:2], [[1.0], [2.0]]) is None
    assert vertex(rates, [[np.log(rate) ** 2] for rate in rates]).interval is None, "one seed tells no interval"
    edge = vertex(rates, [[-np.log(rate) + 0.01 * np.log(rate) ** 2] for rate in rates])
    assert edge is not None and not edge.inside and edge.at == pytest.approx(rates[-1])


DATA = os.environ.get("TILTH_DATA")


@pytest.mark.skipif(not DATA, reason="TILTH_DATA names no folder with scaling/step_law_dense.csv")
def test_published_law_on_the_published_grid():
    with open(Path(DATA or "") / "scaling" / "step_law_dense.csv", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 1911
    for row in rows:
        shape = row["layers"] * (4 * row["hidden"] ** 2 + 3 * row["hidden"] * row["ffn_hidden"])
        assert row["params_non_embedding"] == shape
        assert row["steps"] * row["batch_sequences"] * 2048 / row["tokens"] == pytest.approx(1, abs=3e-3)
    runs = [Run(row["params_non_embedding"], row["tokens"], row["lr"], 2048 * row["batch_sequences"],
                row["smooth_loss"]) for row in rows]
    found = [100 * value for value in excess(runs, step_law).values()]
    assert len(found) == 17
    assert np.mean(found) == pytest.approx(0.0957, abs=0.002) and max(found) == pytest.approx(0.3103, abs=1e-3)
    rival = [100 * value for value in excess(runs, deepseek_law).values()]
    assert np.mean(rival) == pytest.approx(0.76, abs=0.005) and max(rival) == pytest.approx(1.13, abs=0.005)
    refit = fit_step_law(runs)
    assert refit.runs == 129
    assert (refit.law.alpha, refit.law.beta, refit.law.gamma) == pytest.approx((-0.766, 0.197, 0.613), abs=0.005)
