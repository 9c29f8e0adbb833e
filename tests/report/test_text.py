"""Masking, number formats, plain-text tables, comparison of runs."""

import math
import sys
from pathlib import Path

import pytest

from tilth.recipe import BadInput
from tilth.report import compare_html, compare_runs, compare_text, mask_personal, text_table
from tilth.report.compare import flatten
from tilth.report.formats import count, percent, short, size, visible
from tilth.report.tables import width

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import dump, make_run


@pytest.mark.parametrize("text, masked", [
    ("write to ann.b+c@mail.example.org now", "write to [e-mail] now"),
    ("from 10.0.0.1 to 255.1.2.3.", "from [IP] to [IP]."),
    ("at 2001:db8:0:1::42, and fe80:1:2::1", "at [IP], and [IP]"),
    ("call +49 (0)30 901820 or +1-202-555-0143", "call [phone] or [phone]"),
    ("(030) 1234 5678; 202-555-0143; 030/123456", "[phone]; [phone]; [phone]"),
])
def test_personal_data_is_masked(text: str, masked: str) -> None:
    assert mask_personal(text) == masked


@pytest.mark.parametrize("text", [
    "2026-01-31 12:30:45", "a[1::2] and std::vector", "version 1.2.3", "x = 1234567890", "@decorator", "3.14159",
    "300.1.2.999 is no address", "0x7f 0755 0.5", "1e-10", "user@localhost", "",
])
def test_other_text_is_left_alone(text: str) -> None:
    assert mask_personal(text) == text


def test_masking_long_hostile_text_is_quick() -> None:
    for unit in ("a", "a.", "1.", "1:", "+1 ", "(", "a@", "0 "):
        mask_personal(unit * 50_000)


def test_numbers_as_people_read_them() -> None:
    assert (short(4_214_784), short(3.1e14, "FLOP"), short(1.2e21)) == ("4.21 M", "310 TFLOP", "1.20 × 10²¹")
    assert (size(1_101_004), size(812), size(2**20), size(1000 * 2**20)) == ("1.05 MiB", "812 B", "1 MiB", "1000 MiB")
    assert (count(1234567), count(None), count(math.nan), count(True)) == ("1,234,567", "–", "–", "–")
    assert (percent(0.5), percent(0.00001), percent(None)) == ("50.0 %", "< 0.1 %", "–")
    assert visible("a\x00b\ud800", 4) == "a[U+ …"


def test_tables_line_up() -> None:
    text = text_table([["xz", 1.37, 3], ["a longer name", None, 1200]], ["name", "bits", "n"])
    assert text.split("\n") == ["name           bits     n", "-------------  ----  ----", "xz             1.37     3",
                                "a longer name     –  1200"]
    assert text_table([]) == "" and text_table([["a"], ["b", "c"]]) == "a\nb  c"


def test_tables_hold_wide_and_hostile_cells() -> None:
    text = text_table([["日本語", "x"], ["\x1b[31mred\nline", "y"], ["z" * 200, "é"]], ["name", "v"], widest=20)
    assert "\x1b" not in text and len(text.split("\n")) == 5
    columns = {width(line) for line in text.split("\n")[1:]}
    assert columns == {width(text.split("\n")[1])}


def test_runs_side_by_side(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", steps=30), make_run(tmp_path / "two", steps=40)
    dump(two / "evaluate" / "results.json", {"held_out": {"bits_per_byte": {"value": 1.3, "stderr": 0.01, "n": 9}}})
    rows = compare_runs([one, two])
    by_label = {row.label: row for row in rows}
    assert rows[0].texts == ["one", "two"]
    assert by_label["Bits per byte, held out"].best == {1}
    assert by_label["Tokens"].values == [30 * 8192, 40 * 8192]
    assert by_label["stages.pretrain.steps"].texts == ["30", "40"]
    assert "stages.pretrain.learning_rate" not in by_label, "only differences are listed"
    text = compare_text(rows)
    assert "1.300 ± 0.010 *" in text and len({line.find("two") for line in text.split("\n")[:1]}) == 1


def test_a_comparison_page_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    one, two = make_run(tmp_path / "one", steps=20, text=attack), make_run(tmp_path / "two", steps=20)
    page = compare_html(compare_runs([one, two]))
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page


def test_unfinished_runs_compare(tmp_path: Path) -> None:
    dump(tmp_path / "empty" / "manifest.json", {"recipe": "new", "stages": {}})
    rows = compare_runs([make_run(tmp_path / "one", steps=20), tmp_path / "empty"])
    assert next(row for row in rows if row.label == "Tokens").texts == ["164 k", "–"]
    with pytest.raises(BadInput, match="at least two"):
        compare_runs([tmp_path / "one"])


def test_flatten_gives_the_keys_of_the_command_line() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": None, "e": {}}) == {"a.b[0]": 1, "a.b[1].c": 2, "d": None, "e": {}}
