"""Charts: points where they belong, round ticks, gaps for what is not a number."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.report.bars import Bar, Part, bar_chart, share_bar
from tilth.report.plots import Reference, Series, line_chart, spread
from tilth.report.scale import Scale, fit, linear_ticks, log_ticks, smooth, thin, tick_labels


def parse(figure: object) -> ElementTree.Element:
    return ElementTree.fromstring(str(figure))


def paths(figure: object) -> list[str]:
    return [path.get("d", "") for path in parse(figure).iter("path")]


def chart(points: list[tuple[float, float]], **more: object) -> str:
    return str(line_chart("Loss", [Series("training", points)], x_label="tokens", y_label="nats", **more))  # type: ignore[arg-type]


def test_a_line_has_its_points_at_their_places() -> None:
    (d,) = paths(chart([(0, 0), (50, 5), (100, 10)]))
    places = [tuple(map(float, pair.split())) for pair in re.split("[ML]", d)[1:]]
    assert len(places) == 3
    xs, ys = [x for x, _ in places], [y for _, y in places]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] > ys[1] > ys[2] and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_a_log_axis_gives_decades_equal_room() -> None:
    (d,) = paths(chart([(0, 1), (1, 10), (2, 100)], y_log=True))
    ys = [float(pair.split()[1]) for pair in re.split("[ML]", d)[1:]]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_long_series_are_thinned_but_keep_their_spikes() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[70_001] = (70_001.0, -7.0)
    kept = thin(points, 2000)
    assert len(kept) <= 2000
    assert (54_321.0, 99.0) in kept and (70_001.0, -7.0) in kept
    assert kept[0] == points[0] and kept[-1] == points[-1]
    (d,) = paths(chart(points))
    assert d.count("L") + d.count("M") == len(kept)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300), st.integers(5, 40))
def test_thinning_keeps_extremes_order_and_size(values: list[float], most: int) -> None:
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thin(points, most)
    assert len(kept) <= max(most, 5)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    good = [value for value in values if math.isfinite(value)]
    if good:
        finite = [y for _, y in kept if math.isfinite(y)]
        assert max(finite) == max(good) and min(finite) == min(good)


def test_values_that_are_not_numbers_break_the_line() -> None:
    (d,) = paths(chart([(0, 1), (1, 2), (2, math.nan), (3, math.inf), (4, 3), (5, 4)]))
    assert d.count("M") == 2 and d.count("L") == 2 and "nan" not in d and "inf" not in d


@pytest.mark.parametrize("points", [[], [(0, math.nan)], [(math.nan, 1.0)], [(1, math.inf)]])
def test_empty_series_say_so(points: list[tuple[float, float]]) -> None:
    assert "Nothing recorded" in chart(points)


@pytest.mark.parametrize("points", [[(5, 3)], [(0, 0), (0, 0)], [(0, 2), (1, 2)], [(1, 1e300), (2, -1e300)]])
def test_degenerate_ranges_still_draw(points: list[tuple[float, float]]) -> None:
    text = chart(points)
    parse(text)
    assert "nan" not in text and "inf" not in re.sub("[a-z-]*infinite", "", text)


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30), st.booleans(), st.booleans())
def test_any_numbers_give_a_well_formed_chart(points: list[tuple[float, float]], x_log: bool, y_log: bool) -> None:
    text = chart(points, x_log=x_log, y_log=y_log, references=[Reference("rival", 1.5)], y_most=3.0)
    parse(text)
    assert not re.search(r'="(nan|inf|-inf)"', text)


def test_a_chart_speaks_to_screen_readers() -> None:
    root = parse(chart([(0, 1), (1, 2)]))
    svg = next(root.iter("svg"))
    assert svg.get("role") == "img"
    ids = (svg.get("aria-labelledby") or "").split()
    named = {element.get("id"): element.text or "" for element in svg if element.tag in ("title", "desc")}
    assert named[ids[0]] == "Loss" and "2 values, first 1, last 2" in named[ids[1]]


def test_references_near_are_drawn_and_far_are_named() -> None:
    text = chart([(0, 1.0), (1, 2.0)], references=[Reference("near", 1.4), Reference("far", 40.0)])
    assert text.count('class="reference"') == 1 and "Off the axis: far 40" in text


def test_labels_are_spread() -> None:
    places = spread([10, 11, 12, 98], 15, 100)
    assert all(b - a >= 15 for a, b in pairwise(places)) and max(places) <= 100


def test_bars_are_as_long_as_their_values() -> None:
    root = parse(bar_chart("Bits", [Bar("a", 1.0, "1"), Bar("b", 2.0, "2", highlight=True)]))
    wide = {rect.get("class"): float(rect.get("width", "0")) for rect in root.iter("rect")}
    assert wide["bar own"] == pytest.approx(2 * wide["bar"])


def test_a_funnel_bar_is_kept_plus_dropped() -> None:
    root = parse(bar_chart("Rules", [Bar("a", 60.0, "", lost=40.0), Bar("b", math.nan, "")]))
    wide = {rect.get("class"): float(rect.get("width", "0")) for rect in root.iter("rect")}
    assert wide["bar"] == pytest.approx(0.6 * 480) and wide["lost"] == pytest.approx(0.4 * 480)


def test_shares_sum_to_the_whole_and_many_are_joined() -> None:
    text = str(share_bar("By source", [Part(f"s{i}", 1.0) for i in range(20)]))
    root = parse(text)
    assert len(list(root.iter("rect"))) == 8 and "13 more" in text
    shares = [float((bold.text or "").removesuffix(" %")) for bold in root.iter("b")]
    assert sum(shares) == pytest.approx(100, abs=0.5)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_linear_ticks_are_inside_and_even(low: float, span: float) -> None:
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in ticks)


def test_ticks_and_labels() -> None:
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10] or linear_ticks(0, 10) == [0, 2.5, 5, 7.5, 10]
    assert log_ticks(0.1, 1000) == [0.1, 1, 10, 100, 1000]
    assert log_ticks(2, 30) == [2, 5, 10, 20]
    assert tick_labels([0, 2_500_000, 5_000_000]) == ["0", "2.5 M", "5.0 M"]
    assert tick_labels([1.35, 1.4, 1.45]) == ["1.35", "1.40", "1.45"]
    assert tick_labels([]) == []


def test_scales_hold_what_they_were_fitted_to() -> None:
    scale = fit([1, 3, math.nan], 0, 100)
    assert scale.holds(1) and scale.holds(3) and not scale.holds(9)
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)


def test_a_running_mean_restarts_after_a_gap() -> None:
    values = smooth([(0, 1), (1, 2), (2, 3), (3, math.nan), (4, 10)], 3)
    assert [y for _, y in values[:3]] == [1, 2, 3] and math.isnan(values[3][1]) and values[4] == (4, 10)
