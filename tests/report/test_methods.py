"""The table of methods says what the result files say, and nothing else."""

import json

import pytest

from tilth.recipe import BadInput
from tilth.report import methods

RESULT = {"method": "a-method", "claim": "better", "published": "2x", "baseline": "random", "metric": "bits per byte",
          "value": 1.25, "baseline_value": 1.5, "difference": -0.25, "interval": [-0.3, -0.2], "seeds": [0, 1, 2],
          "budget": "1e15 FLOPs", "verdict": "shows"}


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "evidence_folders", lambda: [tmp_path])
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "one" / "README.md").write_text("The verdict in words.")
    return tmp_path


def test_a_method_stands_in_the_table_with_its_interval_and_verdict(evidence):
    assert "-0.25 [-0.3, -0.2]" in methods.methods_text()
    assert "The verdict in words." in methods.methods_text("one")


def test_the_readme_is_written_between_its_markers_and_only_once(evidence, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{methods.BEGIN}\nold\n{methods.END}\nafter\n")
    assert methods.update_readme(readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "a-method" in text
    assert not methods.update_readme(readme)


def test_a_result_without_a_key_is_named(evidence):
    (evidence / "one" / "result.json").write_text(json.dumps({"method": "x"}))
    with pytest.raises(BadInput, match="lacks claim"):
        methods.methods_text()


def test_an_unknown_method_is_answered_with_the_nearest(evidence):
    with pytest.raises(BadInput, match="did you mean 'one'"):
        methods.methods_text("ones")


def test_the_readme_holds_the_table_of_today():
    from pathlib import Path

    readme = Path(__file__).parents[2] / "README.md"
    between = readme.read_text(encoding="utf-8").split(methods.BEGIN)[1].split(methods.END)[0]
    assert between.strip() == methods.methods_markdown().strip(), "run: tilth methods --readme README.md"
