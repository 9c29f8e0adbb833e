"""Two models on the same questions: what is hard for both cancels, so that far smaller differences show."""

from typing import Any

from tilth.evaluate.evaluate import Evaluation
from tilth.evaluate.statistics import paired_difference

RATIOS = {"gold_bits_per_byte": ("gold_bits", "gold_bytes"), "bits_per_byte": ("bits", "bytes")}


def paired(a: Evaluation, b: Evaluation) -> dict[str, dict[str, dict[str, Any]]]:
    """{task: {metric: {value, stderr, interval, n}}} of a minus b, for all that both measured question by question."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, mine in a.items.items():
        other = b.items.get(task, {})
        parts = {part for pair in RATIOS.values() for part in pair}
        same = [name for name, values in mine.items() if name not in parts and len(other.get(name, [])) == len(values)]
        metrics = {name: paired_difference(mine[name], other[name]) for name in same}
        for name, (top, bottom) in RATIOS.items():
            if top in mine and top in other and len(mine[top]) == len(other[top]):
                metrics[name] = paired_difference(mine[top], other[top], mine[bottom])
        if metrics:
            found[task] = metrics
    return found


def rows(found: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """A row a metric: task, metric, difference, 95 % interval, n."""
    return [[task, name, f"{one['value']:+.4f}", "{:+.4f} to {:+.4f}".format(*one["interval"]), str(one["n"])]
            for task, metrics in found.items() for name, one in metrics.items()]
