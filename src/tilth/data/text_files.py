"""Folders and globs of text files: one file, one document; bytes are kept as they are (line ends too).

HTML is reduced to its text by a small extractor of the standard library: tags, scripts and styles go, block elements
become lines. It does not tell an article from the menu around it; a main-content extractor is a curation matter.
"""

import codecs
import io
import json
import tokenize
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from tilth.data import locations
from tilth.data.inputs import EMPTY, Input
from tilth.data.records import Quarantine, Record

SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".py", ".ipynb")
BLOCKS = {"p", "div", "br", "li", "ul", "ol", "tr", "table", "section", "article", "header", "footer", "pre", "hr",
          "blockquote", "title", "h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd", "dl", "main", "nav", "aside"}
SILENT = {"script", "style", "template", "noscript"}


class FilesInput(Input):
    """A folder, glob or file of .txt, .md, .rst, .html, .py and .ipynb, UTF-8 (Python: by its coding line). Of a
    notebook: its Markdown, and its code between fences; outputs and pictures stay behind."""

    kind: str = "files"

    def suffixes(self) -> tuple[str, ...]:
        return SUFFIXES

    def records_of(self, path: str, name: str, quarantine: Quarantine) -> Iterator[Record]:
        if locations.size(path) > self.max_record_bytes:
            return self.bad(quarantine, path, "longer than max_record_bytes", record=name)
        with locations.open_binary(path) as file:
            content = file.read()
        try:
            text = decode_source(content) if path.lower().endswith(".py") else decode(content)
        except ValueError as error:
            return self.bad(quarantine, path, f"not decodable: {error}", record=name)
        if path.lower().endswith((".html", ".htm")):
            text = html_text(text)
        if path.lower().endswith(".ipynb"):
            try:
                text = notebook_text(text)
            except ValueError as error:
                return self.bad(quarantine, path, f"not a notebook: {error}", record=name)
        if not text:
            return quarantine.add(path, EMPTY, record=name)
        record = self.make_record({}, text, name, self.default_source(), None)
        if record is None:
            return self.bad(quarantine, path, "the file's name or text holds lone surrogates", record=ascii(name))
        yield record


def decode(content: bytes) -> str:
    """UTF-8, or UTF-16 when a byte order mark says so (the mark itself is no text); ValueError with the place."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_as(content, "utf-16")
    return _decode_as(content.removeprefix(codecs.BOM_UTF8), "utf-8")


def decode_source(content: bytes) -> str:
    """Python source by its PEP 263 coding line (UTF-8 without one). Unlike `tokenize.open`, line ends stay."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError as error:
        raise ValueError(str(error.msg)) from error
    return _decode_as(content, encoding)


def _decode_as(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid {encoding} at byte {error.start}") from error
    except (UnicodeError, LookupError) as error:  # a coding line may name a codec that is no text encoding
        raise ValueError(f"{encoding}: {error}") from error


def notebook_text(content: str) -> str:
    """The text of a Jupyter notebook (nbformat 3 or 4), cells in order; ValueError where it is none."""
    notebook = json.loads(content)
    sheets = notebook.get("worksheets", [notebook]) if isinstance(notebook, dict) else None
    if not isinstance(sheets, list) or not all(isinstance(one, dict) and isinstance(one.get("cells"), list)
                                               for one in sheets):
        raise ValueError("no list of cells")
    about = notebook.get("metadata")
    kernel = about.get("language_info") if isinstance(about, dict) else None
    language = kernel.get("name", "") if isinstance(kernel, dict) else ""
    return "\n\n".join(part for sheet in sheets for cell in sheet["cells"] if (part := _cell(cell, language)))


def _cell(cell: Any, language: str) -> str:
    source = cell.get("source", cell.get("input", "")) if isinstance(cell, dict) else ""
    text = source if isinstance(source, str) else "".join(line for line in source if isinstance(line, str)) if (
        isinstance(source, list)) else ""
    if not text.strip():
        return ""
    return f"```{language}\n{text}\n```" if cell.get("cell_type") == "code" else text


class _TextOnly(HTMLParser):
    """Collects the text of a page, a line for each block element."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self.silent += 1
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            self.silent = max(0, self.silent - 1)
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data)


def html_text(page: str) -> str:
    """The text of an HTML page: lines stripped, at most one empty line in a row."""
    parser = _TextOnly()
    parser.feed(page)
    parser.close()
    lines: list[str] = []
    for line in "".join(parser.parts).split("\n"):
        stripped = " ".join(line.split())
        if stripped or (lines and lines[-1]):
            lines.append(stripped)
    return "\n".join(lines).strip("\n")
