"""StarCoder's ratios: how much of a program is comment, and how much of a page of HTML is text.

Li et al. 2023, "StarCoder: may the source be with you!" (arXiv 2305.06161), section 3.1: programs in Python, Java and
JavaScript of which less than 1 % or more than 80 % is comment go; so do pages of HTML of which less than 20 %, or fewer
than 100 characters, is text. Its test for XML is in the set `code`.
"""

import ast
import html
import io
import tokenize
from typing import Any, ClassVar

import numpy as np
import polars as pl

from tilth.curate.attributes import TEXT, Attribute, record_column
from tilth.curate.extract import lexer
from tilth.curate.rules import Rule
from tilth.curate.sets.frame import SHORT, Limit, MeasuredSet, Profile
from tilth.curate.sets.ratios import ratio

COLUMNS = ("comments", "html_text")
LANGUAGES = {"py": "python", "java": "java", "js": "javascript", "mjs": "javascript", "html": "html", "htm": "html"}
# What a reader does not see.
HIDDEN = r"(?is)<script\b.*?(?:</script\s*>|\z)|<style\b.*?(?:</style\s*>|\z)|<!--.*?(?:-->|\z)|<[a-z/!?][^>]*>"


class StarcoderMeasures(Attribute):
    """`comments`: share of the characters of a program that are comments or documentation strings; `html_text`: share
    of the characters of a page that a reader sees, 0 for no more than `minimum_text` of them. Null where the language
    is another; it is told by the ending of the id, or of another column or key of the metadata (`path`: a path, or an
    ending alone)."""

    kind: str = "starcoder"
    profile: Profile = "default"
    prefix: str = ""
    path: str = "id"
    minimum_text: int = 100

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{SHORT[self.profile]}starcoder_{name}" for name in COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        ending = records.select(record_column(self.path).str.replace("#.*", "").str.extract(r"(?:^|\.)(\w+)$")
                                .str.to_lowercase()).to_series()
        languages = ending.replace_strict(LANGUAGES, default=None, return_dtype=pl.String).to_list()
        pages = pl.Series([one == "html" for one in languages], dtype=pl.Boolean)
        read = records.filter(pages).select(TEXT.str.replace_all(HIDDEN, "")).to_series()
        shown = np.full(records.height, np.nan)
        shown[pages.to_numpy()] = [len(html.unescape(text)) for text in read]
        size = records["text"].str.len_chars().to_numpy()
        visible = np.where(shown > self.minimum_text, ratio(shown, size), np.where(np.isnan(shown), np.nan, 0.0))
        # A loop over programs: their lexers have no batch form.
        shares = [_share(text, language, self.profile) if language not in (None, "html") and text else None
                  for text, language in zip(records["text"], languages, strict=True)]
        return pl.DataFrame([pl.Series(self.columns()[0], shares, pl.Float64),
                             pl.Series(self.columns()[1], visible).fill_nan(None)])


def _share(text: str, language: str, profile: str) -> float:
    if profile == "dolma-1.2.1" and language == "python":
        return len(_pythons_text(text)) / len(text)
    return _commented(text, language, profile) / len(text)


def _commented(text: str, language: str, profile: str) -> int:
    """Characters of comments, with their marks."""
    from pygments.token import Comment, String
    dolma = profile == "dolma-1.2.1"
    kinds: Any = {Comment.Multiline, Comment.Single} if dolma else None
    return sum(len(value) for kind, value in lexer(language).get_tokens(text) if (
        kind in kinds if dolma else (kind in Comment and kind not in Comment.Preproc) or kind in String.Doc))


def _pythons_text(source: str) -> str:
    """Documentation strings and comments as dolma joins them: without marks, strings only of a file that parses."""
    try:
        nodes = [one for one in ast.walk(ast.parse(source)) if isinstance(one, (ast.Module, ast.ClassDef,
                                                                                 ast.FunctionDef))]
        strings = "\n".join(filter(None, map(ast.get_docstring, nodes)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        strings = ""
    try:
        marks = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)
                 if token.type == tokenize.COMMENT]
    except (tokenize.TokenError, SyntaxError):
        marks = []
    return (strings + "\n" + "".join(marks).replace("#", "")).strip()


class LimitIfMeasured(Limit):
    """A limit for what it was measured on; all else stays."""

    kind: str = "limit_if_measured"

    def drops(self) -> pl.Expr:
        return super().drops() & pl.col(self.attribute).is_not_null()


class Starcoder(MeasuredSet):
    """StarCoder's ratios of comments (Python, Java, JavaScript) and of text in HTML. A threshold of null switches its
    rule off; what is written in another language stays.

    Definitions of the default profile: comments with their marks and documentation strings, found by Pygments; text
    outside tags, scripts and styles. `dolma-1.2.1` (`code_starcoder_taggers_v2`): Python's comments and strings without
    marks, none of a file that does not parse or cannot be cut into tokens; elsewhere only plain comments, so that
    Java's documentation comments do not count where the lexer knows them.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        "minimum_comments": ("starcoder_comments", "minimum"), "maximum_comments": ("starcoder_comments", "maximum"),
        "minimum_html_text": ("starcoder_html_text", "minimum")}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {"dolma-1.2.1": {}}

    kind: str = "starcoder"
    path: str = "id"
    minimum_comments: float | None = 0.01
    maximum_comments: float | None = 0.8
    minimum_html_text: float | None = 0.2

    def attribute(self) -> StarcoderMeasures:
        return StarcoderMeasures(profile=self.profile, prefix=self.prefix, path=self.path)

    def rules(self) -> list[Rule]:
        return [LimitIfMeasured(**{**dict(rule), "kind": "limit_if_measured"}) for rule in super().rules()]
