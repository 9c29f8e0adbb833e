"""Text out of HTML, front matter, source code and notebooks; untouched where there is nothing to take off."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tilth.curate.extract import CodeComments, FrontMatter, HtmlText, comments, lexer, lexer_of_path
from tilth.data.text_files import notebook_text

PAGE = ("<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body><nav><a href='/'>Home</a> "
        "<a href='/a'>About us</a></nav><article><h1>Fields</h1><p>The rain &amp; the seed wait in the field for many "
        "days.</p><pre>a = 1\n  b = 2</pre></article><footer>Copyright 2020</footer><script>bad()</script></body>")


def rewritten(rule, *texts: str, ids: list[str] | None = None) -> list[str]:
    frame = pl.DataFrame({"id": ids or [str(at) for at in range(len(texts))], "text": list(texts)})
    new = frame.select(rule.rewrites().alias("new"))["new"].to_list()
    return [text if one is None else one for text, one in zip(texts, new, strict=True)]


def test_main_content_leaves_menus_and_footers():
    pytest.importorskip("resiliparse", reason="needs tilth[web]")
    [main] = rewritten(HtmlText(), PAGE)
    assert main == "Fields\n\nThe rain & the seed wait in the field for many days.\n\na = 1\n  b = 2"
    [everything] = rewritten(HtmlText(extractor="text"), PAGE)
    assert "Home" in everything and "Copyright 2020" in everything and "bad()" not in everything


def test_trafilatura_finds_the_same_article():
    pytest.importorskip("trafilatura", reason="needs tilth[web]", exc_type=ImportError)
    [main] = rewritten(HtmlText(extractor="trafilatura"), PAGE)
    assert "The rain & the seed wait" in main and "bad()" not in main


@given(st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=200))
def test_texts_without_tags_stay_to_the_byte(text):
    pytest.importorskip("resiliparse", reason="needs tilth[web]")
    assert rewritten(HtmlText(), text) == [text]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_gives_some_text(text):
    pytest.importorskip("resiliparse", reason="needs tilth[web]")
    [found] = rewritten(HtmlText(everything=True), text)
    assert isinstance(found, str)
    [found] = rewritten(HtmlText(), f"<p>{text}")
    assert isinstance(found, str)


def test_a_comparison_is_no_tag():
    pytest.importorskip("resiliparse", reason="needs tilth[web]")
    text = "if a < b and b > c: print(a <b> c)"
    assert rewritten(HtmlText(), text) == [text]


@pytest.mark.parametrize(("text", "left"), [
    ("---\ntitle: A\ntags: [b]\n---\n\n# Title\n", "# Title\n"), ("+++\ntitle = 1\n+++\nBody", "Body"),
    ("---\na: 1\n...\nBody", "Body"), ("Text\n---\nmore\n---\n", "Text\n---\nmore\n---\n"),
    ("---\nnever closed\n", "---\nnever closed\n"), ("", ""), ("---\n---\n", "---\n---\n")])
def test_front_matter_goes_and_rules_between_lines_stay(text, left):
    assert rewritten(FrontMatter(), text) == [left]


PYTHON = '''#!/usr/bin/env python
"""What it does.

    More of it.
"""
import os  # the system

# Two lines
# of one comment.
value = "# no comment"


def f():
    \'\'\'Doc.\'\'\'
    return 1
'''


def test_comments_of_python():
    found = comments(PYTHON, lexer("python"))
    assert "What it does.\n\n    More of it." in found and "the system" in found and "Doc." in found
    assert "Two lines\nof one comment." in found
    assert "no comment" not in found and "import" not in found and '"""' not in found


def test_comments_of_c_by_the_path_and_nothing_for_unknown_files():
    code = "/*\n * Adds.\n */\n#include <a.h>\nint f(int a) { return a + 1; } // one more\n"
    rule = CodeComments()
    assert rewritten(rule, code, code, code, ids=["src/a.c", "notes", "a.txt"]) == ["Adds.\n\none more", code, code]
    assert lexer_of_path("x/y.js#3").name == "JavaScript"


def test_an_unknown_language_is_refused():
    with pytest.raises(ValidationError, match="no lexer of Pygments"):
        CodeComments(language="klingon-script")


def test_notebooks_give_markdown_and_fenced_code():
    cells = [{"cell_type": "markdown", "source": ["# Title\n", "Words."]},
             {"cell_type": "code", "source": "a = 1\nprint(a)", "outputs": [{"text": ["1"]}]},
             {"cell_type": "raw", "source": ""}]
    notebook = {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4}
    assert notebook_text(json.dumps(notebook)) == "# Title\nWords.\n\n```python\na = 1\nprint(a)\n```"
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["b = 2"]}]}], "nbformat": 3}
    assert notebook_text(json.dumps(old)) == "```\nb = 2\n```"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 3}', '{"worksheets": [1]}'])
def test_what_is_no_notebook_says_so(content):
    with pytest.raises(ValueError):
        notebook_text(content)
