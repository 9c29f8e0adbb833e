"""Line charts drawn as inline SVG: no library, no script, right in light and dark, readable by screen readers."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from tilth.report.formats import significant, visible
from tilth.report.scale import Point, Scale, fit, thin, tick_labels
from tilth.report.svg import COLOURS, WIDTH, canvas, empty, figure, identity, join, tag

LEFT, TOP, BOTTOM = 50, 28, 40
HOVER_COLUMNS = 40


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


@dataclass
class _Frame:
    """The plot area of one line chart."""

    x: Scale
    y: Scale
    height: float
    right: float
    parts: list[Markup] = field(default_factory=list)


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, x_log: bool = False,
               y_log: bool = False, references: Sequence[Reference] = (), y_most: float | None = None,
               height: int = 280, width: int = WIDTH, note: str = "", most_points: int = 2000,
               show: Callable[[float], str] = significant, show_x: Callable[[float], str] = significant) -> Markup:
    """Lines over a shared x axis. Values that are not finite break a line; `y_most` cuts the axis (say so in `note`).

    References too far from the data to share the axis are named in the note instead of squashing the curves.
    """
    series = [Series(s.name, _usable(s.points, x_log, y_log), s.marked, s.faint, s.colour) for s in series]
    series = [s for s in series if any(math.isfinite(y) for _, y in s.points)]
    if not series:
        return empty(title)
    frame, drawn, far = _frame(series, references, x_log, y_log, y_most, width, height)
    parts = [_grid(frame, x_label, y_label), *_reference_lines(frame, drawn)]
    lines = [_series(frame, s, _colour(s, i), most_points) for i, s in enumerate(series)]
    area = tag("rect", x=frame.x.start, y=TOP - 4, width=frame.x.end - frame.x.start + 4, height=frame.height + 5)
    clip = identity(str(area))
    parts.append(tag("clipPath", area, id=f"p{clip}"))
    parts.append(tag("g", join(lines), clip_path=f"url(#p{clip})"))
    parts.append(_hover(frame, series, x_label, show, show_x))
    if far:
        listed = ", ".join(f"{r.name} {show(r.value)}" for r in far)
        note = f"{note} Off the axis: {listed}.".strip()
    svg = canvas(title, _describe(series, x_label, y_label, show), height, parts, width)
    return figure(title, svg, legend=_legend(series, bool(drawn)) if width == WIDTH else None, note=note)


def _usable(points: Sequence[Point], x_log: bool, y_log: bool) -> list[Point]:
    """Drop points without a place on the x axis; a y without a place becomes a gap."""
    return [(place, _place(float(y), y_log)) for x, y in points if math.isfinite(place := _place(float(x), x_log))]


def _place(value: float, log: bool) -> float:
    """The value, or NaN where an axis has no place for it; beyond 1e±100 nothing is a measurement, and ticks fail."""
    if not abs(value) < 1e100 or (log and value <= 1e-100):
        return math.nan
    return value if abs(value) > 1e-100 else 0.0


def _frame(series: Sequence[Series], references: Sequence[Reference], x_log: bool, y_log: bool,
           y_most: float | None, width: int, height: int) -> tuple[_Frame, list[Reference], list[Reference]]:
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points if math.isfinite(y) and (y_most is None or y <= y_most)]
    ys = ys or [y for s in series for _, y in s.points if math.isfinite(y)]
    span = max(ys) - min(ys) or abs(max(ys)) or 1.0
    good = [r for r in references if math.isfinite(_place(r.value, y_log))]
    drawn = [r for r in good if min(ys) - 0.6 * span <= r.value <= max(ys) + 0.6 * span]
    far = [r for r in good if r not in drawn]
    right = width - (112 if drawn else 12)
    plot = height - TOP - BOTTOM
    near_zero = not x_log and 0 < min(xs) < 0.1 * max(xs)
    x = fit([*xs, 0.0] if near_zero else xs, LEFT, right, log=x_log, pad=0.0 if max(xs) > min(xs) else 0.04)
    y = fit([*ys, *(r.value for r in drawn)], TOP + plot, TOP, log=y_log)
    return _Frame(x, y, plot, right), drawn, far


def _grid(frame: _Frame, x_label: str, y_label: str) -> Markup:
    bottom = TOP + frame.height
    parts = []
    ticks = frame.y.ticks(5)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(tag("line", class_="grid", x1=LEFT, x2=frame.right, y1=frame.y(tick), y2=frame.y(tick)))
        parts.append(tag("text", label, class_="tick", x=LEFT - 7, y=frame.y(tick) + 4, text_anchor="end"))
    ticks = frame.x.ticks(5 if frame.right > 350 else 4)
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
    ordered = sorted(references, key=lambda r: -r.value)
    places = spread([frame.y(r.value) for r in ordered], 16, TOP + frame.height)
    for reference, place in zip(ordered, places, strict=True):
        y = frame.y(reference.value)
        parts.append(tag("line", class_="reference", x1=LEFT, x2=frame.right, y1=y, y2=y))
        parts.append(tag("text", visible(reference.name, 16), class_="reference-name", x=frame.right + 6, y=place + 4))
    return parts


def spread(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Rising places moved apart to at least `gap`: down first, then back up so that none lies below `last`."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = last
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


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
