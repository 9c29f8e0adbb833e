"""The pieces that every chart is made of: escaped elements, a canvas that screen readers understand, a figure.

Colours are classes (`s0` … `s7` strokes, `f0` … fills, `b0` … backgrounds) that the page's style sheet defines, so
that dark mode and print need no second chart. Every text that enters a chart is escaped here.
"""

import zlib
from collections.abc import Sequence

from markupsafe import Markup, escape

from tilth.report.formats import visible

WIDTH = 480
COLOURS = 8


def tag(name: str, content: object = "", /, **attributes: object) -> Markup:
    """One element; attribute names take `_` for `-` and a trailing one for keywords, content is escaped."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
                    for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{pairs}>{escape(content)}</{name}>")


def _number(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


def figure(title: str, svg: Markup, *, legend: Markup | None = None, note: str = "") -> Markup:
    caption = tag("span", visible(title), class_="chart-title") + (legend or Markup(""))
    below = tag("p", visible(note), class_="note") if note else Markup("")
    return tag("figure", tag("figcaption", caption) + svg + below, class_="chart")


def canvas(title: str, description: str, height: float, parts: Sequence[Markup], width: int = WIDTH) -> Markup:
    number = identity(title, description)
    head = tag("title", visible(title), id=f"t{number}") + tag("desc", visible(description), id=f"d{number}")
    return tag("svg", head + join(parts), viewBox=f"0 0 {width} {height:g}", role="img",
               aria_labelledby=f"t{number} d{number}", preserveAspectRatio="xMidYMid meet")


def identity(*texts: str) -> str:
    """An element id made from what it names, so that the same run gives the same page."""
    return f"{zlib.crc32(chr(0).join(texts).encode('utf-8', 'replace')):08x}"


def empty(title: str, why: str = "Nothing recorded.") -> Markup:
    return figure(title, tag("p", why, class_="nothing"))
