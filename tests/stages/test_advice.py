"""`auto`: settled once before step 0, written down, kept by every resumption."""

import numpy as np
import pytest

from tilth.data.pool import PoolWriter, token_field
from tilth.optim.advisor import step_law
from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json, write_json
from tilth.stages import Context
from tilth.stages.advice import advice_lines
from tilth.stages.pretrain import PretrainStage
from tilth.stages.pretraining import Pretraining

MODEL = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "context": 32}
AUTO = {"model": MODEL, "length": 32, "batch_tokens": "auto", "optimizer": {"kind": "adamw", "lr": "auto"}}


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    with PoolWriter(tmp_path / "tokenize", {"tokens": token_field(17)}, vocab_size=17, end_of_text=0) as writer:
        writer.append({"tokens": [rng.integers(1, 17, 30) for _ in range(40)]},
                      {"unit_id": list(map(str, range(40))), "record_id": list(map(str, range(40))),
                       "source": ["s"] * 40})
    (tmp_path / "pretrain").mkdir()
    return tmp_path


def work(run, **fields):
    stage = parse(PretrainStage, {**AUTO, "budget": {"tokens": 1e6}, **fields})
    return Pretraining(stage, Context(run, run / "pretrain"))


def test_auto_follows_the_law_in_whole_rows_and_is_written_down(run):
    found = work(run)
    parameters = found.model.config.parameters(embeddings=False)
    advice = step_law(parameters, 1e6)
    decided = read_json(run / "pretrain" / "budget.json")
    assert decided["advice"]["lr"] == found.stage.optimizer.lr == pytest.approx(advice.lr)
    assert found.stage.batch_tokens == round(advice.batch_tokens / 32) * 32 == decided["rows"] * 32
    assert decided["steps"] == int(1e6 // found.stage.batch_tokens)
    text = " ".join(decided["advice"]["doubts"])
    assert "below" in text and "repeated" in text and "1e-5" in text
    assert found.loop().optimizers["main"].param_groups[0]["peak_lr"] == pytest.approx(advice.lr)


def test_a_resumption_keeps_what_was_written_down(run):
    work(run)
    decided = read_json(run / "pretrain" / "budget.json")
    decided["advice"] |= {"lr": 0.123, "batch_tokens": 64}
    write_json(run / "pretrain" / "budget.json", decided)
    again = work(run)
    assert (again.stage.optimizer.lr, again.stage.batch_tokens) == (0.123, 64)


def test_a_given_batch_stays_and_counts_for_a_budget_in_steps(run):
    found = work(run, batch_tokens=64, budget={"steps": 100})
    assert found.stage.batch_tokens == 64
    expected = step_law(found.model.config.parameters(embeddings=False), 6400)
    assert found.stage.optimizer.lr == pytest.approx(expected.lr)


def test_a_budget_in_steps_and_an_auto_batch_agree_and_minutes_are_probed(run):
    found = work(run, budget={"steps": 50})
    tokens = 50 * found.stage.batch_tokens
    assert found.stage.batch_tokens == pytest.approx(step_law(1, tokens).batch_tokens, abs=32)
    (run / "pretrain" / "budget.json").unlink()
    assert work(run, budget={"minutes": 0.01}).decided["steps"] >= 1


def test_what_is_written_down_has_the_check_the_cost_of_a_miss_and_the_price_of_own_choices(run):
    found = work(run, batch_tokens=64)
    advice = found.decided["advice"]
    assert advice["check"] == f"optimizer.lr={advice['lr'] / 2:.3g},{advice['lr']:.3g},{2 * advice['lr']:.3g}"
    assert [8.0, None] in advice["cost"]["rate"] and [0.5, 0.44] in advice["cost"]["batch"]
    [price] = advice["prices"]
    assert "batch of 64" in price
    lines = advice_lines(advice, "own.yaml seed=3", "pretrain")
    assert lines[-1].endswith(f"tilth sweep own.yaml seed=3 pretrain.{advice['check']}") and price in lines[1]


def test_the_power_scheduler_checks_its_factor_and_has_no_price_of_a_cap(run):
    found = work(run, schedule={"kind": "power"}).decided["advice"]
    assert found["check"] == "schedule.a=2,4,8" and list(found["cost"]) == ["batch"] and found["prices"] == []
    assert any("warm-up" in doubt for doubt in found["doubts"])


def test_auto_is_refused_where_nothing_settles_it(run):
    with pytest.raises(BadInput, match=r"`optimizer\.lr` is auto"):
        _ = parse(PretrainStage, {**AUTO, "budget": {"tokens": 1e6}}).optimizer.rate
    with pytest.raises(BadInput, match="`batch_tokens` is auto"):
        _ = parse(PretrainStage, {**AUTO, "budget": {"tokens": 1e6}}).rows
    with pytest.raises(BadInput, match=r"optimizer\.lr"):
        parse(PretrainStage, {**AUTO, "optimizer": {"kind": "adamw", "lr": -1}, "budget": {"tokens": 1e6}})
