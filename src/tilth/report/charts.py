"""The charts of a run: what is drawn from which metric, and how its axis is chosen."""

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from tilth.report.bars import Bar, Part, bar_chart, share_bar
from tilth.report.formats import count, decimals, finite, seconds, short, significant, size
from tilth.report.plots import Reference, Series, line_chart
from tilth.report.reading import mapping
from tilth.report.scale import Point, smooth
from tilth.report.scores import Scores
from tilth.report.sources import Source
from tilth.report.svg import WIDTH, tag

X_LABEL = "tokens"
# A curve gets a running mean when it is long enough to be noisy.
SMOOTH_FROM, SMOOTH_SHARE = 60, 0.02


def points(lines: list[dict[str, Any]], *keys: str) -> list[Point]:
    """(tokens, value) of every line that has the metric; a value that is not finite stays as a gap."""
    found = []
    for line in lines:
        x: Any = finite(line.get("tokens"))
        value: Any = line
        for key in keys:
            value = mapping(value).get(key)
        if x is not None and isinstance(value, int | float):
            number = finite(value)
            found.append((x, math.nan if number is None else number))
    return found


def axis_top(curve: list[Point], share: float) -> float | None:
    """Where to cut the axis so that the steep start of training does not flatten all the rest; None to show all.

    The cut is the highest value after the first `share` of the x axis, if what lies above is worth cutting.
    """
    good = [(x, y) for x, y in curve if math.isfinite(y)]
    later = [y for x, y in good if x >= share * good[-1][0]] if len(good) > 4 else []
    if len(later) < 3:
        return None
    top, low = max(later), min(later)
    return top if max(y for _, y in good) - low > 1.4 * (top - low) > 0 else None


def with_mean(name: str, raw: list[Point], colour: int = 0) -> list[Series]:
    """The raw values, and in front of them their running mean if they are many."""
    if len(raw) < SMOOTH_FROM:
        return [Series(name, raw, colour=colour)]
    window = max(5, round(SMOOTH_SHARE * len(raw))) | 1  # odd: as many before as after
    return [Series(name, raw, faint=True, colour=colour),
            Series(f"mean of {window}", smooth(raw, window), colour=colour)]


def loss_chart(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> Markup:
    raw = points(train, "loss")
    top = axis_top(raw, 0.04)
    held = Series("held out", points(held_out, "held_out", "loss"), marked=True, colour=1)
    above = sum(1 for _, y in raw if top is not None and y > top)
    note = f"The axis is cut: {above} early values lie above {decimals(top, 2)}." if above else ""
    return line_chart("Loss", [*with_mean("training", raw), held], x_label=X_LABEL, y_label="nats a token", y_most=top,
                      show=lambda v: decimals(v, 3), show_x=short, note=note)


def held_out_chart(held_out: list[dict[str, Any]], scores: Scores) -> Markup | None:
    own = points(held_out, "held_out", "bits_per_byte")
    if not own:
        return None
    series = [Series("held out", own, marked=True, colour=1)]
    # With the untrained start on the axis, rivals a few hundredths apart would be one line.
    top = axis_top(own, 0.12)
    above = [y for _, y in own if top is not None and y > top]
    references = [Reference(rival.name, rival.value) for rival in scores.rivals]
    note = f"The axis is cut: the first values are {_listed(above)}." if above else ""
    title = "Held-out text, beside rivals" if references else "Held-out text"
    return line_chart(title, series, x_label=X_LABEL, y_label="bits per byte", y_most=top,
                      references=references, show=lambda v: decimals(v, 3), show_x=short, note=note)


def _listed(values: list[float]) -> str:
    return ", ".join(decimals(value, 2) for value in values[:3]) + (" …" if len(values) > 3 else "")


def metric_chart(train: list[dict[str, Any]], key: str, title: str, unit: str, *, log: bool = False,
                 narrow: bool = False) -> Markup | None:
    """One recorded metric over tokens; None where no line has it. `log` asks for a log axis if the range is wide."""
    raw = points(train, key)
    if not any(math.isfinite(y) for _, y in raw):
        return None
    positive = [y for _, y in raw if y > 0]
    wide = log and bool(positive) and max(positive) > 20 * min(positive)
    series = [Series(title.lower(), raw)] if key == "lr" else with_mean("each step", raw)
    return line_chart(title, series, x_label=X_LABEL, y_label=unit, y_log=wide, height=230, show_x=short,
                      width=340 if narrow else WIDTH, show=short if key == "tokens_per_second" else significant)


def rival_chart(scores: Scores) -> Markup:
    bars = [Bar(one.name, one.value, decimals(one.value), error=one.stderr, highlight=one.own,
                note="bits per byte") for one in scores.ranking]
    # A rival far behind all others (bare byte frequencies) would leave the rest too short to tell apart.
    ordered = sorted(bar.value for bar in bars)
    most = 1.25 * ordered[-2] if len(ordered) > 2 and ordered[-1] > 1.8 * ordered[-2] > 0 else None
    return bar_chart("Bits per byte of held-out text, less is better", bars, most=most,
                     note="The longest bar is cut." if most else "")


def rule_funnel(rules: list[dict[str, Any]]) -> Markup | None:
    """One bar a rule: what it let through and what it dropped, in bytes (documents where bytes are missing)."""
    if not rules:
        return None
    unit = "bytes" if any(finite(rule["seen"].get("bytes")) for rule in rules) else "documents"
    bars = [_rule_bar(rule, unit) for rule in rules if finite(rule["seen"].get(unit)) is not None]
    keys = [tag("span", tag("i", class_="key kept-key") + Markup("kept")),
            tag("span", tag("i", class_="key lost-key") + Markup("dropped"))]
    return bar_chart(f"What each rule let through ({unit})", bars,
                     legend=tag("span", Markup("").join(keys), class_="legend"))


def _rule_bar(rule: dict[str, Any], unit: str) -> Bar:
    seen, lost = finite(rule["seen"].get(unit)) or 0.0, finite(rule["dropped"].get(unit)) or 0.0
    documents, dropped_bytes = rule["dropped"].get("documents"), rule["dropped"].get("bytes")
    text = "nothing dropped"
    if lost or finite(documents):
        text = "−" + " · ".join(t for t in (f"{count(documents)} docs" if finite(documents) is not None else "",
                                            size(dropped_bytes) if finite(dropped_bytes) is not None else "") if t)
    return Bar(rule["name"], max(seen - lost, 0.0), text, lost=min(lost, seen))


def source_share(sources: list[Source], name: str, get: Callable[[Source], float | None]) -> Markup:
    return share_bar(f"By source, {name}", [Part(one.name, get(one) or 0.0) for one in sources])


def licence_share(sources: list[Source], name: str, get: Callable[[Source], float | None]) -> Markup:
    shares: dict[str, float] = {}
    for one in sources:
        shares[one.license] = shares.get(one.license, 0.0) + (get(one) or 0.0)
    return share_bar(f"By licence, {name}", [Part(license, value) for license, value in shares.items()])


def stage_seconds(spent: list[tuple[str, float]]) -> Markup:
    return bar_chart("Wall time by stage", [Bar(name, wall, seconds(wall)) for name, wall in spent])
