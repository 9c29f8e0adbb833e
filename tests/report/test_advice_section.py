"""The advice on a run's page: what was advised, where it may not hold, and the plot of what a miss costs."""

from pathlib import Path
from typing import Any

import pytest
from synthetic import dump, make_run

from tilth.report import write_report
from tilth.report.advice import miss_chart

ADVICE: dict[str, Any] = {
    "law": "Step Law", "lr": 0.00182, "batch_tokens": 8192, "parameters": 3_166_208, "tokens": 1.2e7,
    "doubts": ["1.2e+07 tokens are below what Step Law was fitted on <i>"],
    "prices": ["the recipe's batch of 4.1e+03 is 0.5 times that: about 0.44 % more loss, where the law holds"],
    "cost": {"rate": [[0.5, 0.38], [1.0, 0.0], [2.0, 0.73], [8.0, None]], "batch": [[0.5, 0.44], [1.0, 0.0]]},
    "check": "optimizer.lr=0.00091,0.00182,0.00364"}


def page(folder: Path, budget: Any) -> str:
    run = make_run(folder / "run", steps=60)
    dump(run / "pretrain" / "budget.json", budget)
    return write_report(run).read_text(encoding="utf-8")


def test_advice_stands_on_the_page_with_its_doubts_its_check_and_the_cost_of_a_miss(tmp_path: Path) -> None:
    text = page(tmp_path, {"advice": ADVICE})
    for part in ("Step Law advised a peak rate of 0.00182 and 8.19 k tokens a step", "&lt;i&gt;",
                 "tilth sweep RECIPE pretrain.optimizer.lr=0.00091,0.00182,0.00364", "What missing the optimum costs",
                 "diverge at 8 times the best rate", "about 0.44 % more loss"):
        assert part in text, part
    assert "<i>" not in text.partition('id="advice"')[2].partition("</section>")[0]


def test_without_doubts_no_check_is_asked_for(tmp_path: Path) -> None:
    text = page(tmp_path, {"advice": {**ADVICE, "doubts": [], "prices": []}})
    assert 'id="advice"' in text and "tilth sweep" not in text


@pytest.mark.parametrize("budget", [{}, {"advice": None}, {"advice": []}, [1]])
def test_a_run_without_advice_has_no_such_part(tmp_path: Path, budget: Any) -> None:
    assert 'id="advice"' not in page(tmp_path, budget)


def test_broken_figures_leave_out_what_they_say_and_nothing_else(tmp_path: Path) -> None:
    broken = {**ADVICE, "lr": "fast", "cost": {"rate": [["x", 1], [2.0]]}, "doubts": 3, "parameters": None}
    assert "advised 8.19 k tokens a step" in page(tmp_path, {"advice": broken})


def test_no_tables_no_chart() -> None:
    assert miss_chart({}) is None
