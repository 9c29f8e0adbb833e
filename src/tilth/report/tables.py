"""Plain-text tables with aligned columns, for the terminal."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from tilth.report.formats import UNKNOWN, visible


def text_table(rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None, *, align: str | None = None,
               gap: int = 2, widest: int = 60) -> str:
    """Rows as aligned text, one line a row, no line at the end.

    `align` has one letter a column, `l` or `r`; without it, columns whose cells all look like numbers go right.
    Control characters are made visible (cells may come from a corpus), long cells are cut at `widest` columns.
    """
    body = [[_cell(value, widest) for value in row] for row in rows]
    columns = max([len(row) for row in body] + [len(header or ())], default=0)
    for row in body:
        row.extend([""] * (columns - len(row)))
    head = [_cell(name, widest) for name in header or ()]
    sides = align or "".join("r" if _numeric([row[i] for row in body]) else "l" for i in range(columns))
    widths = [max((width(row[i]) for row in [*body, *([head] if head else [])] if i < len(row)), default=0)
              for i in range(columns)]
    lines = [_line(row, widths, sides, gap) for row in body]
    if head:
        rule = (" " * gap).join("-" * w for w in widths)
        lines = [_line(head + [""] * (columns - len(head)), widths, sides, gap), rule, *lines]
    return "\n".join(lines)


def width(text: str) -> int:
    """Columns that `text` takes on a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cell(value: Any, widest: int) -> str:
    if value is None:
        return UNKNOWN
    text = visible(f"{value:.4g}" if isinstance(value, float) else value).replace("\n", " ").replace("\t", " ")
    if width(text) <= widest:
        return text
    while width(text) > widest - 1:
        text = text[:-1]
    return text + "…"


def _numeric(cells: Sequence[str]) -> bool:
    """Every filled cell starts like a number, and at least one does."""
    filled = [cell for cell in cells if cell not in ("", UNKNOWN)]
    return bool(filled) and all(cell.lstrip("+-−<> ")[:1].isdigit() for cell in filled)


def _line(row: Sequence[str], widths: Sequence[int], sides: str, gap: int) -> str:
    cells = []
    for text, room, side in zip(row, widths, sides, strict=True):
        fill = " " * (room - width(text))
        cells.append(fill + text if side == "r" else text + fill)
    return (" " * gap).join(cells).rstrip()
