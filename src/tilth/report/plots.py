"""Charts drawn as inline SVG: no library, no script, right in light and dark, readable by screen readers.

Colours are classes (`c0` … `c7`) that the page's style sheet fills, so that dark mode and print need no second chart.
Each function returns a whole `<figure>`; every text that enters one is escaped here.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count as counter

from markupsafe import Markup, escape

from tilth.report.formats import percent, significant, visible
from tilth.report.scale import Point, Scale, fit, thin, tick_labels

WIDTH, LEFT, TOP, BOTTOM = 480, 50, 22, 40
HOVER_COLUMNS = 40
COLOURS = 8
_ids = counter(1)


@dataclass(frozen=True)
class Series:
    """A named line (or, with `points`, marked values) over the x axis; `faint` draws the raw values behind a mean."""

    name: str
    points: Sequence[Point]
    marked: bool = False
    faint: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Reference:
    """A horizontal line to beat."""

    name: str
    value: float


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


@dataclass
class _Frame:
    """The plot area of one line chart."""

    x: Scale
    y: Scale
    height: float
    right: float
    parts: list[Markup] = field(default_factory=list)


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


def canvas(title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    number = next(_ids)
    head = tag("title", visible(title), id=f"t{number}") + tag("desc", visible(description), id=f"d{number}")
    return tag("svg", head + join(parts), viewBox=f"0 0 {WIDTH} {height:g}", role="img",
               aria_labelledby=f"t{number} d{number}", preserveAspectRatio="xMidYMid meet")


def empty(title: str, why: str = "Nothing recorded.") -> Markup:
    return figure(title, tag("p", why, class_="nothing"))


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, x_log: bool = False,
               y_log: bool = False, references: Sequence[Reference] = (), y_most: float | None = None,
               height: int = 270, note: str = "", most_points: int = 2000,
               show: Callable[[float], str] = significant, show_x: Callable[[float], str] = significant) -> Markup:
    """Lines over a shared x axis. Values that are not finite break a line; `y_most` cuts the axis (say so in `note`).

    References too far from the data to share the axis are named in the note instead of squashing the curves.
    """
    series = [Series(s.name, _usable(s.points, x_log, y_log), s.marked, s.faint, s.colour) for s in series]
    series = [s for s in series if any(math.isfinite(y) for _, y in s.points)]
    if not series:
        return empty(title)
    frame, drawn, far = _frame(series, references, x_log, y_log, y_most, height)
    parts = [_grid(frame, x_label, y_label), *_reference_lines(frame, drawn)]
    lines = [_series(frame, s, _colour(s, i), most_points) for i, s in enumerate(series)]
    clip = next(_ids)
    area = tag("rect", x=frame.x.start, y=TOP - 4, width=frame.x.end - frame.x.start + 4, height=frame.height + 5)
    parts.append(tag("clipPath", area, id=f"p{clip}"))
    parts.append(tag("g", join(lines), clip_path=f"url(#p{clip})"))
    parts.append(_hover(frame, series, x_label, show, show_x))
    if far:
        listed = ", ".join(f"{r.name} {show(r.value)}" for r in far)
        note = f"{note} Off the axis: {listed}.".strip()
    svg = canvas(title, _describe(series, x_label, y_label, show), height, parts)
    return figure(title, svg, legend=_legend(series, bool(drawn)), note=note)


def _usable(points: Sequence[Point], x_log: bool, y_log: bool) -> list[Point]:
    """Drop points without a place on the x axis; a y without a place becomes a gap."""
    return [(float(x), float(y) if not y_log or y > 0 else math.nan) for x, y in points
            if math.isfinite(x) and (x > 0 or not x_log)]


def _frame(series: Sequence[Series], references: Sequence[Reference], x_log: bool, y_log: bool,
           y_most: float | None, height: int) -> tuple[_Frame, list[Reference], list[Reference]]:
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points if math.isfinite(y) and (y_most is None or y <= y_most)]
    ys = ys or [y for s in series for _, y in s.points if math.isfinite(y)]
    span = max(ys) - min(ys) or abs(max(ys)) or 1.0
    good = [r for r in references if math.isfinite(r.value) and (r.value > 0 or not y_log)]
    drawn = [r for r in good if min(ys) - 0.6 * span <= r.value <= max(ys) + 0.6 * span]
    far = [r for r in good if r not in drawn]
    right = WIDTH - (98 if drawn else 12)
    plot = height - TOP - BOTTOM
    x = fit(xs, LEFT, right, log=x_log, pad=0.0 if max(xs) > min(xs) else 0.04)
    y = fit([*ys, *(r.value for r in drawn)], TOP + plot, TOP, log=y_log)
    return _Frame(x, y, plot, right), drawn, far


def _grid(frame: _Frame, x_label: str, y_label: str) -> Markup:
    bottom = TOP + frame.height
    parts = []
    ticks = frame.y.ticks(5)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(tag("line", class_="grid", x1=LEFT, x2=frame.right, y1=frame.y(tick), y2=frame.y(tick)))
        parts.append(tag("text", label, class_="tick", x=LEFT - 7, y=frame.y(tick) + 4, text_anchor="end"))
    ticks = frame.x.ticks(5)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(tag("text", label, class_="tick", x=frame.x(tick), y=bottom + 16, text_anchor="middle"))
        parts.append(tag("line", class_="axis", x1=frame.x(tick), x2=frame.x(tick), y1=bottom, y2=bottom + 3))
    parts.append(tag("line", class_="axis", x1=LEFT, x2=frame.right, y1=bottom, y2=bottom))
    parts.append(tag("text", visible(x_label), class_="label", x=float(frame.right), y=bottom + 34, text_anchor="end"))
    parts.append(tag("text", visible(y_label), class_="label", x=2, y=11))
    return tag("g", join(parts), aria_hidden="true")


def _reference_lines(frame: _Frame, references: Sequence[Reference]) -> list[Markup]:
    """Dashed lines with their names beside the plot, pushed apart where they would overlap."""
    parts = []
    floor = -math.inf
    for reference in sorted(references, key=lambda r: -r.value):
        y = frame.y(reference.value)
        parts.append(tag("line", class_="reference", x1=LEFT, x2=frame.right, y1=y, y2=y))
        place = max(y, floor + 15)
        floor = place
        parts.append(tag("text", visible(reference.name, 16), class_="reference-name", x=frame.right + 6, y=place + 4))
    return parts


def _colour(series: Series, index: int) -> int:
    return (index if series.colour is None else series.colour) % COLOURS


def _series(frame: _Frame, series: Series, colour: int, most: int) -> Markup:
    points = thin(series.points, most)
    kind = "faint" if series.faint else "line"
    parts = [tag("path", d=path(points, frame.x, frame.y), class_=f"{kind} s{colour}")]
    good = [(x, y) for x, y in points if math.isfinite(y)]
    if series.marked or len(good) == 1:
        shown = good[:: max(1, math.ceil(len(good) / 60))] + good[-1:]
        parts += [tag("circle", cx=frame.x(x), cy=frame.y(y), r=2.8, class_=f"dot f{colour}") for x, y in shown]
    return join(parts)


def path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """SVG path data, a new stretch after every value that is not finite."""
    commands = []
    pen = "M"
    for px, py in points:
        if not math.isfinite(py):
            pen = "M"
            continue
        commands.append(f"{pen}{x(px):.1f} {y(py):.1f}")
        pen = "L"
    return "".join(commands)


def _hover(frame: _Frame, series: Sequence[Series], x_label: str, show: Callable[[float], str],
           show_x: Callable[[float], str]) -> Markup:
    """Columns that show a guide, dots and the values under the pointer, by style alone (no script may run)."""
    step = (frame.x.end - frame.x.start) / HOVER_COLUMNS
    parts = []
    for index in range(HOVER_COLUMNS):
        left = frame.x.start + index * step
        near = [(s, _colour(s, i), _nearest(s.points, frame.x, left, left + step)) for i, s in enumerate(series)
                if not s.faint]
        found = [(s, colour, point) for s, colour, point in near if point is not None]
        if found:
            parts.append(_column(frame, left, step, found, x_label, show, show_x))
    return tag("g", join(parts), class_="hover")


def _column(frame: _Frame, left: float, step: float, found: Sequence[tuple[Series, int, Point]], x_label: str,
            show: Callable[[float], str], show_x: Callable[[float], str]) -> Markup:
    x = found[0][2][0]
    text = f"{show_x(x)} {x_label} · " + " · ".join(f"{s.name} {show(p[1])}" for s, _, p in found)
    tip = [tag("line", x1=frame.x(x), x2=frame.x(x), y1=TOP, y2=TOP + frame.height, class_="guide")]
    tip += [tag("circle", cx=frame.x(p[0]), cy=frame.y(p[1]), r=4, class_=f"dot f{colour}")
            for _, colour, p in found if frame.y.holds(p[1])]
    tip.append(tag("text", visible(text), x=float(frame.right), y=11, text_anchor="end", class_="tip"))
    area = tag("rect", tag("title", visible(text)), x=left, y=TOP, width=step, height=frame.height)
    return tag("g", area + tag("g", join(tip)))


def _nearest(points: Sequence[Point], x: Scale, left: float, right: float) -> Point | None:
    """The finite point nearest to the middle of a column, if one falls inside it."""
    middle = (left + right) / 2
    at = bisect_left(points, middle, key=lambda point: x(point[0]))
    near = [p for p in points[max(0, at - 3): at + 3] if math.isfinite(p[1]) and left - 0.5 <= x(p[0]) <= right + 0.5]
    return min(near, key=lambda p: abs(x(p[0]) - middle), default=None)


def _legend(series: Sequence[Series], references: bool) -> Markup | None:
    named = [(s, _colour(s, i)) for i, s in enumerate(series)]
    if len(named) == 1 and not references:
        return None
    keys = [tag("span", tag("i", class_=f"key b{c}{' pale' if s.faint else ''}") + escape(visible(s.name)))
            for s, c in named]
    return tag("span", join(keys), class_="legend")


def _describe(series: Sequence[Series], x_label: str, y_label: str, show: Callable[[float], str]) -> str:
    """One sentence a series for people who do not see the chart."""
    sentences = []
    for s in series:
        ys = [y for _, y in s.points if math.isfinite(y)]
        sentences.append(f"{s.name}: {len(ys)} values, first {show(ys[0])}, last {show(ys[-1])}, "
                         f"least {show(min(ys))}, most {show(max(ys))}.")
    return f"{y_label} over {x_label}. " + " ".join(sentences)


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
    wide = max(scale(max(bar.value, 0)), 1.5 if bar.value > 0 else 0)
    kind = "bar own" if bar.highlight else "bar"
    parts = [tag("title", visible(f"{bar.label}: {bar.text} {bar.note}".strip())),
             tag("text", visible(bar.label, 46), x=0, y=y + 12, class_="bar-label" + (" own" if bar.highlight else "")),
             tag("text", visible(bar.text), x=WIDTH, y=y + 12, text_anchor="end", class_="bar-value"),
             tag("rect", x=0, y=y + 19, width=WIDTH, height=9, rx=2, class_="track"),
             tag("rect", x=0, y=y + 19, width=float(wide), height=9, rx=2, class_=kind)]
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
