"""A grid of runs, formats by learning rates by seeds, and what it says: how many bits does this recipe need?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from tilth.analyze.stability import Outcome, chance_to_see, rank_test, rate_sensitivity, wilson
from tilth.precision.formats import NumberFormat
from tilth.recipe import BadInput

FULL = "fp32"
OPTIONS = {"scaled": {"scaling": "tensor"}, "truncated": {"rounding": "truncate"}, "infinite": {"overflow": "infinite"}}
# Student's t, 95 % on one side, for 1 to 10 degrees of freedom; beyond, the normal's.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)


@dataclass(frozen=True)
class Spec:
    """A column of the study: `fp32` (as the recipe is), or formats as `E8M3`, `E4M3fn/E5M2` (forward/backward; fp32
    leaves a pass alone), with options as in `E4M7:scaled`."""

    name: str
    forward: NumberFormat | None
    backward: NumberFormat | None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Spec":
        formats, *options = text.split(":")
        sides = formats.split("/")
        unknown = [option for option in options if option not in OPTIONS]
        if len(sides) > 2 or unknown:
            raise BadInput(f"'{text}' is no format of a stability study: write fp32, E8M3 or E4M3fn/E5M2 (forward and "
                           f"backward), with :{', :'.join(OPTIONS)} behind it if wanted.")
        both = [None if side == FULL else NumberFormat.parse(side) for side in sides]
        if options and both == [None] * len(both):
            raise BadInput(f"'{text}' rounds nothing, so `{options[0]}` means nothing.")
        merged = {key: value for option in options for key, value in OPTIONS[option].items()}
        return cls(text, both[0], both[-1], merged)

    @property
    def bits(self) -> int:
        """Of the wider operand."""
        return max(32 if side is None else side.bits for side in (self.forward, self.backward))

    def fields(self) -> dict[str, Any] | None:
        """The value of `simulated` in a pretrain stage."""
        if self.forward is None and self.backward is None:
            return None
        sides = {"forward": self.forward, "backward": self.backward}
        return {**{key: None if side is None else str(side) for key, side in sides.items()}, **self.options}


@dataclass(frozen=True)
class Trained:
    """One run of the grid; sharpness: (step, phi, loss of the same text) of each measurement."""

    outcome: Outcome
    sharpness: Sequence[tuple[int, float, float]] = ()


Cells = Mapping[tuple[str, float], Sequence[Trained]]


def study(specs: Sequence[Spec], rates: Sequence[float], cells: Cells, tolerance: float) -> dict[str, Any]:
    """What the grid says, as result.json holds it. cells: by format's name and rate, the runs in the order of seeds.

    The first format is the reference. Another is safe if (1) it fails nowhere where the reference does not, (2) the
    largest rate at which all its runs converge is not below the reference's, and (3) at the reference's best rate its
    final loss is at most `tolerance` (a share) above, with 95 % confidence (Student's t, one side, over paired seeds).
    """
    reference = _row(specs[0], rates, cells)
    best = reference["best_rate"]
    rows = [_row(spec, rates, cells) for spec in specs]
    for spec, row in zip(specs, rows, strict=True):
        row |= _against(spec, specs[0], rates, cells, reference, best, tolerance)
    seeds = min(len(runs) for runs in cells.values())
    return {"reference": specs[0].name, "reference_rate": best, "tolerance": tolerance, "formats": rows,
            "answer": _answer(rows), "chance_to_see_a_failure_of_10_percent": chance_to_see(0.1, seeds),
            "cells": [_cell(spec, rate, cells[spec.name, rate]) for spec in specs for rate in rates],
            "warning": warning(cells)}


def _cell(spec: Spec, rate: float, runs: Sequence[Trained]) -> dict[str, Any]:
    finals = [run.outcome.final for run in runs]
    failed = sum(run.outcome.failed for run in runs)
    last = [run.sharpness[-1][1] for run in runs if run.sharpness and math.isfinite(run.sharpness[-1][1])]
    return {"format": spec.name, "rate": rate, "kinds": [run.outcome.kind for run in runs],
            "firsts": [run.outcome.first for run in runs], "finals": finals,
            "median": middle(finals), "failed": failed, "failed_interval": wilson(failed, len(runs)),
            "spikes": [run.outcome.spikes for run in runs], "diverged_at": [run.outcome.diverged_at for run in runs],
            "sharpness": [list(map(list, run.sharpness)) for run in runs],
            "last_sharpness": median(last) if last else None}


def middle(finals: Sequence[float | None]) -> float | None:
    """The median of final losses, a failed run counting as above all others; None if the median run failed."""
    found = median(math.inf if value is None else value for value in finals)
    return found if math.isfinite(found) else None


def _row(spec: Spec, rates: Sequence[float], cells: Cells) -> dict[str, Any]:
    """One format over the whole grid."""
    runs = [run for rate in rates for run in cells[spec.name, rate]]
    counts = {kind: sum(run.outcome.kind == kind for run in runs) for kind in ("diverged", "stalled", "spiking")}
    medians = {rate: middle([run.outcome.final for run in cells[spec.name, rate]]) for rate in rates}
    whole = [rate for rate in rates if not any(run.outcome.failed for run in cells[spec.name, rate])]
    usable = {rate: value for rate in whole if (value := medians[rate]) is not None}
    firsts = [run.outcome.first for run in runs if math.isfinite(run.outcome.first)]
    return {"format": spec.name, "bits": spec.bits, "runs": len(runs), **counts,
            "diverged_interval": wilson(counts["diverged"], len(runs)),
            "failed_interval": wilson(counts["diverged"] + counts["stalled"], len(runs)),
            "converging_rates": whole, "largest_rate": max(whole, default=None),
            "best_rate": min(usable, key=lambda rate: usable[rate]) if usable else None,
            "best_loss": min(usable.values(), default=None),
            "sensitivity": rate_sensitivity(medians, median(firsts)) if usable else None}


def _against(spec: Spec, reference: Spec, rates: Sequence[float], cells: Cells, known: Mapping[str, Any],
             best: float | None, tolerance: float) -> dict[str, Any]:
    """A format beside the reference: what it loses, and whether it is safe."""
    if best is None:
        return {"excess": None, "excess_upper": None, "safe": False,
                "because": f"{reference.name} itself converges at no rate"}
    pairs = [(a.outcome.final, b.outcome.final) for a, b in zip(cells[spec.name, best], cells[reference.name, best],
                                                              strict=True)]
    excess = [a / b - 1 for a, b in pairs if a is not None and b is not None]
    mean = float(np.mean(excess)) if len(excess) == len(pairs) else None
    upper = None if mean is None else upper_bound(excess)
    because = []
    lost = [rate for rate in known["converging_rates"] if any(run.outcome.failed for run in cells[spec.name, rate])]
    if lost:
        because.append(f"runs fail at {', '.join(f'{rate:g}' for rate in lost)}")
    whole = [rate for rate in rates if not any(run.outcome.failed for run in cells[spec.name, rate])]
    if max(whole, default=0) < known["largest_rate"]:
        because.append(f"the largest rate that converges falls from {known['largest_rate']:g} to "
                       f"{f'{max(whole):g}' if whole else 'none'}")
    if spec is not reference and upper is not None and upper > tolerance:
        because.append(f"at {best:g} the loss may be up to {100 * upper:.2g} % higher" if math.isfinite(upper) else
                       f"how much the loss rises at {best:g} needs two seeds or more")
    return {"excess": mean, "excess_upper": None if upper is None or math.isinf(upper) else upper,
            "safe": not because, "because": "; ".join(because)}


def upper_bound(values: Sequence[float]) -> float:
    """95 % on one side for the mean of independent values by Student's t; infinite for a single one."""
    if len(values) < 2:
        return math.inf
    t = T95[len(values) - 2] if len(values) - 1 <= len(T95) else 1.645
    return float(np.mean(values)) + t * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _answer(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The safe format of the fewest bits, of several the one with the lowest loss; and those as narrow that are not."""
    safe = [row for row in rows if row["safe"]]
    if not safe:
        return {"format": None, "bits": None}
    chosen = min(safe, key=lambda row: (row["bits"], row["excess"]))
    return {"format": chosen["format"], "bits": chosen["bits"],
            "unsafe_below": [row["format"] for row in rows if row["bits"] <= chosen["bits"] and not row["safe"]]}


def warning(cells: Cells) -> dict[str, Any] | None:
    """Whether sharpness warns: at the first measurements, are runs that diverge later sharper than those that never do?
    The same for the loss of the same text, since sharpness moves with it. None without measurements."""
    runs = [run for several in cells.values() for run in several]
    found: dict[str, Any] = {}
    for step in sorted({one[0] for run in runs for one in run.sharpness}):
        later = [one for run in runs for one in run.sharpness if one[0] == step and math.isfinite(one[1])
                 and run.outcome.diverged_at is not None and run.outcome.diverged_at > step]
        never = [one for run in runs for one in run.sharpness if one[0] == step and math.isfinite(one[1])
                 and not run.outcome.failed]
        parts: dict[str, Any] = {"later": len(later), "never": len(never)}
        for at, name in ((1, "sharpness"), (2, "loss")):
            share, p = rank_test([one[at] for one in later], [one[at] for one in never])
            parts |= {name: None if math.isnan(share) else share, f"{name}_p": None if math.isnan(p) else p}
        found[str(step)] = parts
    return found or None
