"""The analysis of concepts as a command: counts, misalignment, fit and page, from captions or from tables."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

from tilth.cli import app
from tilth.recipe import BadInput
from tilth.stages.concepts import pairs_of, study_concepts

NAMES = [f"thing{chr(97 + at)}" for at in range(10)]


@pytest.fixture
def data(tmp_path):
    """Thing number i is in 2^i captions, tagged in all but two of them; performance rises by 3 for each doubling."""
    captions = [f"a {name} here" for at, name in enumerate(NAMES) for _ in range(2**at)]
    (tmp_path / "captions.jsonl").write_text("".join(
        json.dumps({"id": f"pair-{at}", "caption": text}) + "\n" for at, text in enumerate(captions)))
    (tmp_path / "names.txt").write_text("\n".join([*NAMES, "<script>never</script>"]))
    tags = [(f"pair-{at}", text.split()[1]) for at, text in enumerate(captions)]
    wrong = [(one, NAMES[0] if at in (1000, 1001) else tag) for at, (one, tag) in enumerate(tags)]
    pl.DataFrame(wrong, schema=["id", "concept"], orient="row").write_parquet(tmp_path / "tags.parquet")
    pl.DataFrame({"concept": NAMES, "accuracy": [20 + 3.0 * at for at in range(10)]}).write_csv(
        tmp_path / "scores.csv")
    return tmp_path


def run(data, **fields):
    given = {"captions": [str(data / "captions.jsonl")], "names": str(data / "names.txt"), "text_column": "caption",
             "images": str(data / "tags.parquet"), "performance": str(data / "scores.csv"), **fields}
    return study_concepts({key: value for key, value in given.items() if value is not None}, data / "out")


def test_from_captions_to_a_page(data, capsys):
    found = run(data)
    rows = {row["concept"]: row for row in pl.read_csv(data / "out" / "counts.csv").to_dicts()}
    assert rows["thingc"] == {"concept": "thingc", "text": 4, "image": 4, "matched": 4}
    assert rows["thingj"]["text"] == 512 and rows["thingj"]["matched"] == 510
    assert rows["thinga"]["image"] == 3 and rows["thinga"]["matched"] == 1
    assert found["alignment"] == {"misaligned": 2, "indexed": 1023, "records": 1023, "of_indexed": 2 / 1023,
                                  "of_all": 2 / 1023}
    assert found["fit"]["points_per_decade"]["value"] == pytest.approx(3 / 0.30103, rel=0.01)
    assert json.loads((data / "out" / "result.json").read_text())["fit"] == found["fit"]
    page = (data / "out" / "concepts.html").read_text()
    assert "thingj" in page and "<script>" not in page and "points a decade" in page
    assert "1023" in capsys.readouterr().out


def test_the_count_is_a_choice(data):
    text = run(data, count="text")["fit"]["points_per_decade"]["value"]
    assert text == pytest.approx(3 / 0.30103, rel=1e-6) != run(data)["fit"]["points_per_decade"]["value"]
    with pytest.raises(BadInput, match="did you mean 'matched'"):
        run(data, count="match")


def test_counts_made_before_are_filtered_and_joined(data):
    run(data, images=None)
    counts = pl.read_csv(data / "out" / "counts.csv").select("concept", count="text").with_columns(set=pl.lit("a"))
    pl.concat([counts, counts.with_columns(set=pl.lit("b"), count=pl.lit(1, pl.Int64))]).write_csv(data / "c.csv")
    tables = {"captions": None, "names": None, "images": None, "counts": str(data / "c.csv")}
    found = run(data, **tables, where={"set": "a"})
    assert found["fit"]["points_per_decade"]["value"] == pytest.approx(3 / 0.30103, rel=1e-6)
    with pytest.raises(BadInput, match="more than once"):
        run(data, **tables)
    with pytest.raises(BadInput, match="No row has set=c"):
        run(data, **tables, where={"set": "c"})


def test_what_is_missing_is_named(data):
    with pytest.raises(BadInput, match="either captions"):
        run(data, captions=None)
    with pytest.raises(BadInput, match="--names FILE"):
        run(data, names=None)
    with pytest.raises(BadInput, match="--performance"):
        run(data, captions=None, counts=str(data / "scores.csv"), performance=None)
    with pytest.raises(BadInput, match="NAME=VALUE"):
        pairs_of(["kind"], "--where")


def test_the_command(data):
    result = CliRunner().invoke(app, [
        "analyze", "concepts", str(data / "captions.jsonl"), "--names", str(data / "names.txt"),
        "--text-column", "caption",
        "--performance", str(data / "scores.csv"), "--count", "text", "-o", str(data / "cli"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["fit"]["fitted"] == 10
    assert (data / "cli" / "concepts.html").is_file()
