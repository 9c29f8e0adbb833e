"""Several tracked runs side by side: what the Fine Line study (Yang et al. 2024, arXiv 2404.01204) asks of checkpoints.

Which tasks move together, when each ability starts, whether an early score orders the runs as the end does (beside the
held-out loss, which has to be beaten), whether sizes are alike at equal loss, and the law of the loss with its error on
the largest size. Every part says null where the runs cannot answer it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from tilth.evaluate.tracking.curves import Curve
from tilth.evaluate.tracking.laws import fit_loss_law
from tilth.evaluate.tracking.runs import run_curves
from tilth.evaluate.tracking.together import domain_coherence, early_order, kendall, off_chance, size_gap
from tilth.recipe import BadInput

LOSS = "held_out"


def study(trackings: Mapping[str, dict[str, Any]], domains: Mapping[str, str] | None = None,
          early: float = 0.3) -> dict[str, Any]:
    """trackings: by name of run; domains: of tasks, for coherence (default: a task's name up to its first - or _)."""
    curves = {name: run_curves(name, tracking) for name, tracking in trackings.items()}
    everything = [curve for found in curves.values() for curve in found]
    tasks = sorted(set.intersection(*({curve.task for curve in found if not _is_text(curve.task)}
                                      for found in curves.values())))
    if not tasks:
        raise BadInput(f"The runs {', '.join(trackings)} share no task: track them with the same `--tasks`.")
    losses = {name: next((curve for curve in found if curve.task == LOSS), None) for name, found in curves.items()}
    by_task = {task: [curve for curve in everything if curve.task == task] for task in tasks}
    labels = {task: (domains or {}).get(task, task.replace("_", "-").split("-")[0]) for task in tasks}
    return {"runs": list(trackings), "tasks": tasks,
            "coherence": _coherence([one for task in tasks for one in by_task[task]], labels),
            "starts": {task: {one.run: off_chance(one) for one in found if one.stderr is not None}
                       for task, found in by_task.items()},
            "early_order": {task: _orders(found, losses, early) for task, found in by_task.items()},
            "size_gap": _gaps(by_task, losses), "loss_law": _law([one for one in losses.values() if one is not None])}


def _is_text(task: str) -> bool:
    return task.split("/")[0] == LOSS


def _coherence(curves: Sequence[Curve], labels: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        return domain_coherence(curves, labels)
    except ValueError:
        return None


def _orders(found: Sequence[Curve], losses: Mapping[str, Curve | None], early: float) -> dict[str, float] | None:
    """Kendall tau with the final order: of the task's own early score, and of the early held-out loss."""
    if len(found) < 3:
        return None
    order = {"own": early_order(found, early)}
    known = [(one, loss) for one in found if (loss := losses[one.run]) is not None]
    if len(known) == len(found):
        at = [-float(np.interp(early * loss.tokens[-1], loss.tokens, loss.scores)) for _, loss in known]
        order["loss"] = kendall(at, [one.scores[-1] for one, _ in known])
    return order


def _gaps(by_task: Mapping[str, Sequence[Curve]], losses: Mapping[str, Curve | None]) -> dict[str, Any] | None:
    """Mean gap between runs of different sizes at equal tokens and at equal loss, over the same pairs."""
    rows = []
    for found in by_task.values():
        for a, b in combinations(found, 2):
            x, y = losses[a.run], losses[b.run]
            if a.size == b.size or x is None or y is None or len(x.scores) != len(a.scores) or (
                    len(y.scores) != len(b.scores)):
                continue
            try:
                rows.append((size_gap(a, b), size_gap(a, b, x.scores, y.scores)))
            except ValueError:  # losses that do not meet
                continue
    if not rows:
        return None
    tokens, loss = np.array(rows).mean(axis=0)
    return {"pairs": len(rows), "tokens": float(tokens), "loss": float(loss)}


def _law(losses: Sequence[Curve]) -> dict[str, Any] | None:
    """The loss law of all but the largest size (in bits per byte), and its relative error there. Three sizes at least:
    floor, factor and exponent of the size are three numbers."""
    largest = max((one.size for one in losses), default=0.0)
    points = [(one.size, tokens, score) for one in losses for tokens, score in zip(one.tokens, one.scores, strict=True)]
    known = np.array([point for point in points if point[0] < largest])
    if len(known) < 6 or len({point[0] for point in known.tolist()}) < 3:
        return None
    law, asked = fit_loss_law(*known.T), np.array([point for point in points if point[0] == largest])
    error = np.abs(np.log(law(asked[:, 0], asked[:, 1]) / asked[:, 2]))
    return {**asdict(law), "points": len(known), "largest": largest, "relative_error": float(error.mean())}


def lines(found: Mapping[str, Any]) -> list[str]:
    """For people."""
    said = [f"{len(found['runs'])} runs, {len(found['tasks'])} tasks"]
    one = found["coherence"]
    said.append("tasks that move together: the domains give no pairs to compare" if one is None else
                f"differences correlate {one['within']:+.2f} within domains, {one['across']:+.2f} across "
                f"(p = {one['p']:.3f})")
    for task in found["tasks"]:
        began = [tokens for tokens in found["starts"][task].values() if tokens is not None]
        order = found["early_order"][task]
        orders = "" if order is None else "; early order " + ", ".join(f"by {who} {tau:+.2f}"
                                                                      for who, tau in order.items())
        said.append(f"  {task}: off chance in {len(began)} of {len(found['starts'][task])} runs"
                    + (f", first at {min(began):.3g} tokens" if began else "") + orders)
    one = found["size_gap"]
    said.append("sizes: nothing to compare" if one is None else f"mean gap between sizes {one['tokens']:.3f} at equal "
                f"tokens, {one['loss']:.3f} at equal loss ({one['pairs']} pairs)")
    one = found["loss_law"]
    said.append("loss law: too few sizes below the largest" if one is None else
                f"loss law: {one['E']:.3f} + {one['A']:.3g} / N^{one['alpha']:.3f} + {one['B']:.3g} / "
                f"D^{one['beta']:.3f} bits per byte, {one['relative_error']:.1%} off on the largest size")
    return said
