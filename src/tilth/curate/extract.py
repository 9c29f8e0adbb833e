"""Rules that take the text out of what wraps it: HTML, front matter, source code.

HTML goes through a well-kept extractor: Resiliparse (Bevendorff et al. 2018; a native parser, 20-40 MB a second) or
trafilatura (Barbaresi 2021; slower, often cleaner). Comments of source code are found by the lexers of Pygments.
"""

import importlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import model_validator

from tilth.curate.attributes import TEXT
from tilth.curate.rules import DocumentRule
from tilth.recipe import BadInput

Extractor = Literal["text", "main", "trafilatura"]
MARKUP = r"(?is)^.{0,4000}<(?:!doctype|html|head|body|div|p|span|table|ul|ol|article|section|h[1-6]|a|br)\b[^<]*>"
FRONT_MATTER = r"\A(?:---[^\S\n]*\n(?s:.*?)\n(?:---|\.\.\.)|\+\+\+[^\S\n]*\n(?s:.*?)\n\+\+\+)[^\S\n]*(?:\n+|\z)"


class HtmlText(DocumentRule):
    """HTML to its text. extractor: `text`, all that a reader sees; `main`, without menus, headers and footers (both by
    Resiliparse); `trafilatura`, its main content. everything: also texts that show no HTML tag in their first 4,000
    characters, which are left as they are otherwise. A page of which nothing is left becomes an empty text."""

    kind: str = "html_text"
    rewrites_text: ClassVar[bool] = True
    extractor: Extractor = "main"
    everything: bool = False

    @model_validator(mode="after")
    def _installed(self) -> "HtmlText":
        extractor(self.extractor)
        return self

    def rewrites(self) -> pl.Expr:
        read = extractor(self.extractor)
        text = TEXT.map_batches(lambda texts: pl.Series([read(one) for one in texts], dtype=pl.String),
                                return_dtype=pl.String)
        return text if self.everything else pl.when(TEXT.str.contains(MARKUP)).then(_where(MARKUP, read))


class FrontMatter(DocumentRule):
    """Takes the YAML (`---`) or TOML (`+++`) block off the top of a Markdown document."""

    kind: str = "front_matter"
    rewrites_text: ClassVar[bool] = True

    def rewrites(self) -> pl.Expr:
        return TEXT.str.replace(FRONT_MATTER, "")


class CodeComments(DocumentRule):
    """Keeps only the comments and documentation strings of source code, markers off, a blank line between them.

    language: a Pygments lexer's name (`python`, `c`, `javascript`); null: told from the end of the record's id (a
    path), and a record whose id tells nothing is left as it is.
    """

    kind: str = "code_comments"
    rewrites_text: ClassVar[bool] = True
    language: str | None = None

    @model_validator(mode="after")
    def _known(self) -> "CodeComments":
        if self.language is not None and lexer(self.language) is None:
            raise ValueError(f"language '{self.language}' is no lexer of Pygments; see `pygmentize -L lexers`")
        return self

    def rewrites(self) -> pl.Expr:
        def read(records: pl.Series) -> pl.Series:
            return pl.Series([comments(one["text"], self._lexer(one["id"])) for one in records], dtype=pl.String)

        return pl.struct("id", "text").map_batches(read, return_dtype=pl.String)

    def _lexer(self, identity: str) -> Any:
        return lexer(self.language) if self.language else lexer_of_path(identity)


def _where(pattern: str, read: Callable[[str], str]) -> pl.Expr:
    """`read` of the texts that match, null of all others (which are not read)."""
    def some(texts: pl.Series) -> pl.Series:
        chosen = texts.str.contains(pattern)
        return pl.Series([read(text) if yes else None for text, yes in zip(texts, chosen, strict=True)],
                         dtype=pl.String)

    return TEXT.map_batches(some, return_dtype=pl.String)


@cache
def extractor(kind: Extractor) -> Callable[[str], str]:
    """HTML to text; BadInput where its package is missing."""
    if kind == "trafilatura":
        package = _package("trafilatura", "trafilatura")
        return lambda page: package.extract(page, include_comments=False, include_tables=True) or ""
    package = _package("resiliparse.extract.html2text", "resiliparse")
    return lambda page: package.extract_plain_text(page, main_content=kind == "main", preserve_formatting=True,
                                                   alt_texts=False, list_bullets=False)


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"Reading HTML by this extractor needs the package `{name}`: pip install 'tilth[web]'."
                       ) from error


@cache
def lexer(name: str) -> Any:
    """The lexer of a language; None for a language that Pygments does not know."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound
    try:
        return get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def lexer_of_path(path: str) -> Any:
    """The lexer for a file by its name; None where that tells nothing, or tells of plain text."""
    ending = re.search(r"\.\w+$", path.partition("#")[0])
    return _lexer_of_ending(ending[0].lower()) if ending else None


@cache
def _lexer_of_ending(ending: str) -> Any:
    from pygments.lexers import get_lexer_for_filename
    from pygments.util import ClassNotFound
    try:
        found = get_lexer_for_filename(f"x{ending}", stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    return None if found.name in ("Text only", "Text output") else found


def comments(text: str, lexer: Any) -> str | None:
    """The comments and documentation strings of `text`; None without a lexer."""
    if lexer is None:
        return None
    from pygments.token import Comment, String
    blocks: list[list[str]] = []
    together = False  # whether nothing but space stands between this token and the comment before
    for kind, value in lexer.get_tokens(text):
        wanted = (kind in Comment and kind not in Comment.Preproc and kind not in Comment.PreprocFile) or (
            kind in String.Doc)
        if wanted:
            lines = [_unmarked(line) for line in value.splitlines()]
            if together and blocks and kind in Comment:
                blocks[-1] += lines
            else:
                blocks.append(lines)
        together = wanted or (together and not value.strip() and value.count("\n") <= 1)
    return "\n\n".join(block for lines in blocks if (block := "\n".join(lines).strip()))


def _unmarked(line: str) -> str:
    """A line of a comment without its markers."""
    line = re.sub(r"^\s*(?:/\*+|//+!?|#+!?|--+|;+|%+|\*+(?!/)|[rRuU]?\"\"\"|[rRuU]?''')\s?", "", line)
    return re.sub(r"\s*(?:\*+/|\"\"\"|''')\s*$", "", line).rstrip()
