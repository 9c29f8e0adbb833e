"""The page of a run: complete, nearly empty, hostile."""

import json
import re
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tilth.recipe import BadInput
from tilth.report import write_report
from tilth.report.page import render
from tilth.report.reading import read_run
from tilth.report.sources import read_sources

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import dump, make_run

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page(HTMLParser):
    """Collects what the tests ask about: tags, loads, text, unclosed elements."""

    VOID = frozenset({"meta", "br", "wbr", "hr", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("runs") / "quickstart", steps=300)
    return write_report(run).read_text(encoding="utf-8")


def test_a_complete_run_shows_every_part(complete: str) -> None:
    page = Page(complete)
    assert not page.open, "every element is closed"
    ids = {attrs["id"] for tag, attrs in page.tags if tag == "section"}
    assert ids == {"scores", "curves", "samples", "trained-on", "data", "cost", "run"}
    for words in ("4.21 M parameters", "1.412 bits per byte", "1.05 MiB", "Better than 4 of 5 rivals; behind xz -9",
                  "byte 5-gram", "stdlib docstrings", "GPL-2.0-or-later", "5f5f5f", "lone surrogate",
                  "metadata.skore",
                  "cloze_ identifiers", "59.3 %", "of a measured matrix-product peak", "The resolved recipe",
                  "2.13.0+cpu"):
        assert words in page.words, words


def test_personal_data_is_masked(complete: str) -> None:
    for secret in ("tim@example.org", "192.168.7.12", "someone@example.com"):
        assert secret not in complete
    assert "[e-mail], [IP]" in complete


def test_nothing_is_loaded_and_nothing_runs(complete: str) -> None:
    page = Page(complete)
    policies = [attrs["content"] for tag, attrs in page.tags
                if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    for tag, attrs in page.tags:
        assert tag not in {"script", "img", "link", "iframe", "object", "embed", "base", "form", "use", "image"}
        assert not any(name.startswith("on") for name in attrs)
        assert not any(attrs.get(name) for name in ("src", "srcset", "data", "action", "xlink:href"))
        assert (attrs.get("href") or "#").startswith("#")
    assert "http://" not in complete and "https://" not in complete
    assert not re.search(r"@import|url\((?!#)", complete)


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30, text=ATTACK)
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert "<script" not in text.lower()
    # recipe name and value, rule, reason, source, example, sample: all of them are there, as text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 12
    assert [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv")] == [POLICY]


def test_text_that_has_no_picture_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30, text="\ud800 \x1b[31m \u202e")
    text = write_report(run).read_text(encoding="utf-8")
    assert "[U+D800]" in text and "[U+001B]" in text and "[U+202E]" in text
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e]", text)


def test_a_nearly_empty_run_still_has_a_page(tmp_path: Path) -> None:
    dump(tmp_path / "run" / "manifest.json", {"recipe": "mine", "stages": {"curate": "running"}})
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert "Nothing trained yet." in page.words and "running" in page.words
    assert {attrs["id"] for tag, attrs in page.tags if tag == "section"} == {"run"}


def test_a_run_that_still_trains(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, steps=50)
    (folder / "pretrain" / "manifest.json").unlink()
    dump(folder / "manifest.json", {"recipe": "mine", "stages": {"pretrain": "running"}})
    with open(folder / "pretrain" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 51, "loss": NaN, "tokens": 417792}\n{"step": 52, "lo')
    (folder / "evaluate" / "results.json").unlink()
    words = Page(write_report(folder).read_text(encoding="utf-8")).words
    assert "418 k tokens" in words
    assert "One step had a loss that is not a number" in words
    assert "not measured" in words


@pytest.mark.parametrize("file, content", [
    ("pretrain/metrics.jsonl", "not json\n{}\n"), ("evaluate/results.json", "[1, 2"), ("curate/report.json", "[]"),
    ("manifest.json", "null"), ("recipe.yaml", "a: [b"), ("evaluate/samples.json", '{"a": 3}'),
    ("curate/report.json", '{"rules": [{"name": null, "seen": 3, "examples": ["x"]}], "sources": {"a": 1}}'),
    ("tokenize/report.json", '{"sources": {"stdlib": {"tokens": "many"}}}'),
    ("evaluate/results.json", '{"held_out": {"bits_per_byte": {"value": null}, "xz": {"value": NaN}}, "t": 3}'),
    ("pretrain/manifest.json", '{"kind": "pretrain", "summary": {"parameters": "x", "sources": [1], "flops": 1e400}}'),
])
def test_broken_files_do_not_hide_the_rest(tmp_path: Path, file: str, content: str) -> None:
    run = make_run(tmp_path / "run", steps=30)
    (run / file).write_text(content, encoding="utf-8")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not page.open and "Run and recipe" in page.words
    try:
        json.loads(content)
    except ValueError:
        assert Path(file).name in page.words, "the page names the file that cannot be read"


def test_sources_join_over_the_stages_and_hide_no_missing_licence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    dump(run / "curate" / "report.json", {"sources": [
        {"source": "web", "license": "MIT", "documents": 3, "bytes": 30},
        {"source": "web", "license": None, "documents": 1, "bytes": 10}]})
    dump(run / "tokenize" / "report.json", {"sources": [
        {"source": "web", "license": "MIT", "documents": 3, "bytes": 30, "tokens": 9},
        {"source": "web", "license": None, "documents": 1, "bytes": 10, "tokens": 2},
        {"source": "ready", "license": "CC0-1.0", "documents": 2, "bytes": 8, "tokens": 4}]})
    web, ready = read_sources(read_run(run))
    assert (web.name, web.license, web.documents, web.bytes, web.pool_tokens) == ("web", "MIT, not stated", 4, 40, 11)
    assert (ready.name, ready.documents, ready.pool_tokens, ready.drawn) == ("ready", 2, 4, None)
    assert "Some sources state no licence." in Page(write_report(run).read_text(encoding="utf-8")).words


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(BadInput, match="no run folder"):
        write_report(tmp_path / "missing")


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run, moment = make_run(tmp_path / "run", steps=30), datetime(2026, 1, 1, tzinfo=UTC)
    assert render(read_run(run), moment) == render(read_run(run), moment)
