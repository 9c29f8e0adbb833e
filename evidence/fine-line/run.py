"""Forecast late benchmark scores from early checkpoints, one model size left out: `TILTH_DATA=... python run.py`.

TILTH_DATA is the folder that holds scaling/pythia_checkpoint_evals.csv. Writes result.json and forecasts.json here.
"""

import csv
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilth.evaluate.tracking.baselines import last_value, power_law
from tilth.evaluate.tracking.curves import Curve
from tilth.evaluate.tracking.forecast import Forecaster, examples
from tilth.evaluate.tracking.intervals import conformal_bounds, covered, winkler
from tilth.recipe.files import write_json

HERE = Path(__file__).parent
TOKENS, SEEN, LATE, LEVEL = 299.9e9, 0.3, 0.8, 0.8
SIZES = {"70m": 70.4e6, "160m": 162e6, "410m": 405e6, "1b": 1.01e9, "1.4b": 1.41e9, "6.9b": 6.86e9}
DESIGN, VERDICT = ("70m", "160m", "1b"), ("410m", "1.4b", "6.9b")
CHANCE = {"arc_easy": 0.25, "arc_challenge": 0.25, "mmlu_mean": 0.25, "logiqa": 0.25, "sciq": 0.25, "piqa": 0.5,
          "winogrande": 0.5, "wsc": 0.5, "lambada_openai": 0.0}
Bounds = tuple[np.ndarray, np.ndarray]


def read_curves(path: Path) -> list[Curve]:
    """A curve for each run, task and number of shots; tokens by share of training."""
    scores: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            size = row["size"].split("-")[0]
            usual = row["metric"] == "acc" and row["task"] in CHANCE and "MtokBS" not in row["model"]
            if usual and size in SIZES and int(row["step"]):
                key = (f"{row['suite']}/{row['model']}/{row['shots']}", size, row["task"], row["shots"])
                scores[key][int(row["step"])] = float(row["value"])
    return [_curve(run, size, task, shots, found) for (run, size, task, shots), found in scores.items()]


def _curve(run: str, size: str, task: str, shots: str, found: dict[int, float]) -> Curve:
    steps = np.array(sorted(found))
    tokens = steps / (143_000 if steps[-1] > 71_500 else 71_500) * TOKENS
    return Curve(run, size, f"{task}/{shots}", SIZES[size], tokens, np.array([found[step] for step in steps]),
                 CHANCE[task])


class Experiment:
    """All forecasts of `curves`, by the forecaster and the baselines; `group`, `task`, `y` (n,) describe them."""

    def __init__(self, curves: Sequence[Curve]):
        cut = {curve.run: SEEN * TOKENS for curve in curves}
        targets = {curve.run: curve.tokens[curve.tokens >= LATE * TOKENS] for curve in curves}
        self.examples = examples(curves, cut, targets)
        self.y = np.array([one.target for one in self.examples])
        self.group = np.array([one.group for one in self.examples])
        self.task = np.array([one.task for one in self.examples])
        self.size = np.array([SIZES[group] for group in self.group])
        self.middles = {name: np.concatenate([rule(curve.until(cut[curve.run]), targets[curve.run])
                                              for curve in curves])
                        for name, rule in (("last value", last_value), ("power law", power_law))}

    def forecast(self, test: np.ndarray, train: np.ndarray) -> Bounds:
        known = [one for one, used in zip(self.examples, train, strict=True) if used]
        new = [one for one, asked in zip(self.examples, test, strict=True) if asked]
        found = Forecaster().fit(known).predict(new, LEVEL)
        return np.array([one.low for one in found]), np.array([one.high for one in found])

    def baseline(self, name: str, test: np.ndarray, train: np.ndarray, by_task: bool = False) -> Bounds:
        middle, low, high = self.middles[name], np.zeros(len(self.y)), np.zeros(len(self.y))
        for task in np.unique(self.task) if by_task else [""]:
            mine = (self.task == task) if by_task else np.ones(len(self.y), bool)
            below, above = conformal_bounds((self.y - middle)[train & mine], LEVEL)
            low[mine], high[mine] = middle[mine] + below, middle[mine] + above
        return low[test], high[test]

    def left_out(self, sizes: Sequence[str], among: Sequence[str], rule: Callable[..., Bounds], smaller: bool = False,
                 **kwargs: Any) -> dict[str, np.ndarray]:
        """Winkler scores, hits and widths of the forecasts of `sizes`, each left out of `among` in turn."""
        parts = []
        for size in sizes:
            test = self.group == size
            train = np.isin(self.group, among) & ~test & (self.size < SIZES[size] if smaller else True)
            low, high = rule(test=test, train=train, **kwargs)
            parts.append((winkler(low, high, self.y[test], LEVEL), covered(low, high, self.y[test]), high - low,
                          self.group[test], self.task[test]))
        return dict(zip(("score", "hit", "width", "group", "task"), map(np.concatenate, zip(*parts, strict=True)),
                        strict=True))

    def table(self, sizes: Sequence[str], among: Sequence[str], smaller: bool = False) -> dict[str, Any]:
        rules = {"forecast": (self.forecast, {}), "last value": (self.baseline, {"name": "last value"}),
                 "power law": (self.baseline, {"name": "power law"}),
                 "last value, by task": (self.baseline, {"name": "last value", "by_task": True})}
        return {name: self.left_out(sizes, among, rule, smaller, **kwargs) for name, (rule, kwargs) in rules.items()}


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray], draws: int = 2000) -> tuple[float, list[float]]:
    """Mean score of a minus b, with the 95 % bootstrap interval over (size, task) pairs."""
    gap, keys = a["score"] - b["score"], np.char.add(a["group"].astype(str), a["task"].astype(str))
    _, member = np.unique(keys, return_inverse=True)
    sums, counts = np.bincount(member, gap), np.bincount(member)
    drawn = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(gap.mean()), np.quantile(means, [0.025, 0.975]).tolist()


def summary(table: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    def figures(found: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
        return {"winkler": float(found["score"][rows].mean()), "coverage": float(found["hit"][rows].mean()),
                "width": float(found["width"][rows].mean()), "forecasts": int(rows.sum())}
    return {name: {"all": figures(found, np.ones(len(found["hit"]), bool)),
                   **{str(size): figures(found, found["group"] == size) for size in np.unique(found["group"])}}
            for name, found in table.items()}


def main() -> int:
    folder = os.environ.get("TILTH_DATA")
    if not folder:
        print("Set TILTH_DATA to the folder that holds scaling/pythia_checkpoint_evals.csv.", file=sys.stderr)
        return 2
    start = time.monotonic()
    experiment = Experiment(read_curves(Path(folder) / "scaling" / "pythia_checkpoint_evals.csv"))
    if "--design" in sys.argv:
        print_table(summary(experiment.table(DESIGN, DESIGN)))
        return 0
    table = experiment.table(VERDICT, list(SIZES))
    figures = summary(table)
    print_table(figures)
    better = min(("last value", "power law"), key=lambda name: figures[name]["all"]["winkler"])
    gap, interval = difference(table["forecast"], table[better])
    own = figures["forecast"]["all"]
    wins = all(own["winkler"] < figures[name]["all"]["winkler"] for name in ("last value", "power law"))
    holds = wins and interval[1] < 0 and 0.7 <= own["coverage"] <= 0.9
    verdict = "shows" if holds else "mixed" if wins else "does not show"
    write_json(HERE / "forecasts.json", {
        "verdict_sizes": figures, "design_sizes": summary(experiment.table(DESIGN, DESIGN)),
        "6.9b_from_smaller": summary(experiment.table(["6.9b"], list(SIZES), smaller=True))})
    write_json(HERE / "result.json", {
        "method": "fine-line", "claim": "Early checkpoints forecast late benchmark scores of a model size never seen, "
        "with an honest interval", "published": "curves of known tasks predict others across sizes (no figure given)",
        "baseline": better, "metric": "mean interval (Winkler) score of the 80 % interval, accuracy, less is better",
        "value": own["winkler"], "baseline_value": figures[better]["all"]["winkler"], "difference": gap,
        "interval": interval, "seeds": [], "budget": f"{own['forecasts']} forecasts of {len(VERDICT)} left-out sizes, "
        f"{time.monotonic() - start:.0f} s on one core", "coverage": own["coverage"], "verdict": verdict})
    print(f"{verdict}: {gap:+.4f} against {better}, 95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}, coverage "
          f"{own['coverage']:.1%}")
    return 0


def print_table(figures: dict[str, Any]) -> None:
    for name, groups in figures.items():
        for group, one in groups.items():
            print(f"{name:22s} {group:5s} winkler {one['winkler']:.4f}  coverage {one['coverage']:.3f}  "
                  f"width {one['width']:.4f}")


if __name__ == "__main__":
    sys.exit(main())
