"""Bars as inline SVG: horizontal bars and funnels, one bar cut into shares, a small mark for a score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tilth.report.formats import percent, visible
from tilth.report.scale import Scale
from tilth.report.svg import COLOURS, WIDTH, canvas, empty, figure, join, tag


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; `lost` is drawn as a lighter continuation, `error` as a whisker of this half length."""

    label: str
    value: float
    text: str
    lost: float = 0.0
    error: float | None = None
    highlight: bool = False
    note: str = ""


@dataclass(frozen=True)
class Part:
    label: str
    value: float
    text: str = ""


def bar_chart(title: str, bars: Sequence[Bar], *, note: str = "", legend: Markup | None = None,
              most: float | None = None) -> Markup:
    """Horizontal bars from zero, label and value above each; with `lost` parts it is a funnel."""
    good = [bar for bar in bars if math.isfinite(bar.value) and math.isfinite(bar.lost)]
    if not good:
        return empty(title)
    top = most or max(bar.value + bar.lost + (bar.error or 0) for bar in good) or 1.0
    scale = Scale(0, top, 0, WIDTH)
    rows = [_bar(bar, scale, 4 + 38 * index) for index, bar in enumerate(good)]
    described = "; ".join(f"{bar.label}: {bar.text}" for bar in good)
    return figure(title, canvas(title, described, 38 * len(good) + 2, rows), note=note, legend=legend)


def _bar(bar: Bar, scale: Scale, y: float) -> Markup:
    wide = min(max(scale(max(bar.value, 0)), 1.5 if bar.value > 0 else 0), WIDTH)
    kind = "bar own" if bar.highlight else "bar"
    parts = [tag("title", visible(f"{bar.label}: {bar.text} {bar.note}".strip())),
             tag("text", visible(bar.label, 46), x=0, y=y + 12, class_="bar-label" + (" own" if bar.highlight else "")),
             tag("text", visible(bar.text), x=WIDTH, y=y + 12, text_anchor="end", class_="bar-value"),
             tag("rect", x=0, y=y + 19, width=WIDTH, height=9, rx=2, class_="track"),
             tag("rect", x=0, y=y + 19, width=float(wide), height=9, rx=2, class_=kind)]
    if bar.value > scale.high:
        parts.append(tag("path", d=f"M{WIDTH - 34} {y + 29}l6 -11h5l-6 11z", class_="cut"))
    if bar.lost > 0:
        lost = max(scale(bar.lost), 2.0)
        parts.append(tag("rect", x=float(min(wide, WIDTH - lost)), y=y + 19, width=lost, height=9, class_="lost"))
    if bar.error:
        low, high = scale(max(bar.value - bar.error, 0)), scale(bar.value + bar.error)
        parts.append(tag("path", d=f"M{low:.1f} {y + 23.5}H{high:.1f}M{low:.1f} {y + 20}v7M{high:.1f} {y + 20}v7",
                         class_="whisker"))
    return tag("g", join(parts))


def share_bar(title: str, parts: Sequence[Part], *, most: int = COLOURS, note: str = "") -> Markup:
    """One bar cut into shares of the whole; what comes after the largest is joined as one last part."""
    good = sorted((p for p in parts if math.isfinite(p.value) and p.value > 0), key=lambda p: -p.value)
    if not good:
        return empty(title)
    whole = sum(part.value for part in good)
    if len(good) > most:
        rest = good[most - 1:]
        good = [*good[: most - 1], Part(f"{len(rest)} more", sum(part.value for part in rest))]
    pieces, keys, x = [], [], 0.0
    for index, part in enumerate(good):
        wide = WIDTH * part.value / whole
        words = f"{part.label}: {percent(part.value / whole)} {part.text}".strip()
        pieces.append(tag("rect", tag("title", visible(words)), x=x, y=0, width=max(wide - 1.5, 0.7), height=22,
                          class_=f"f{index}"))
        label = tag("span", visible(part.label, 60), class_="share-name")
        keys.append(tag("li", tag("i", class_=f"key b{index}") + label + tag("b", percent(part.value / whole))))
        x += wide
    described = "; ".join(f"{part.label} {percent(part.value / whole)}" for part in good)
    svg = canvas(title, described, 22, pieces)
    return figure(title, svg + tag("ul", join(keys), class_="shares"), note=note)


def interval_mark(value: float, stderr: float | None, chance: float | None) -> Markup:
    """A small mark on a line from 0 to 1: the value with two standard errors, and a tick where chance lies."""
    if not 0 <= value <= 1:
        return Markup("")
    parts = [tag("line", x1=0, x2=100, y1=8, y2=8, class_="axis")]
    if chance is not None and 0 <= chance <= 1:
        parts.append(tag("line", x1=100 * chance, x2=100 * chance, y1=2, y2=14, class_="chance"))
    if stderr:
        low, high = 100 * max(value - 2 * stderr, 0), 100 * min(value + 2 * stderr, 1)
        parts.append(tag("line", x1=low, x2=high, y1=8, y2=8, class_="range s0"))
    parts.append(tag("circle", cx=100 * value, cy=8, r=3.2, class_="f0"))
    return tag("svg", join(parts), viewBox="-4 0 108 16", class_="mark", aria_hidden="true")
