"""What the small sweep of ours says: `python evidence/step-law/read_sweep.py FOLDER`; writes sweep.json here."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tilth.optim.advisor import Advice, step_law
from tilth.optim.fitting import Run, cells, excess, fit_step_law
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_json


def runs_of(result: dict[str, Any]) -> list[Run]:
    return [Run(cell["parameters"], float(f"{cell['tokens']:.1e}"), cell["lr"], cell["batch_tokens"], cell["mean"])
            for cell in result["cells"] if cell["mean"] is not None]


def number(share: float) -> float | None:
    """Percent, or None where there is none."""
    return 100 * share if np.isfinite(share) else None


def best_pair(runs: list[Run]) -> Advice:
    pairs = {Advice(run.lr, run.batch_tokens) for run in runs}
    return min(pairs, key=lambda pair: float(np.mean(list(excess(runs, lambda n, d: pair).values()))))


def main() -> None:
    result = read_json(Path(sys.argv[1]) / "result.json")
    runs = runs_of(result)
    published, refitted, pair, rows = excess(runs, step_law), {}, {}, []
    for (n, d), group in sorted(cells(runs).items()):
        others = [run for run in runs if (run.parameters, run.tokens) != (n, d)]
        fixed = best_pair(others)
        try:
            refitted |= excess(group, fit_step_law(others).law)
        except BadInput:  # the other cells do not determine a law: said in the result as null
            refitted[n, d] = float("nan")
        pair |= excess(group, lambda n, d, fixed=fixed: fixed)
        best, advice = min(group, key=lambda run: run.loss), step_law(n, d)
        rows.append({"parameters": n, "tokens": d, "best": {"lr": best.lr, "batch_tokens": best.batch_tokens,
                                                            "bits_per_byte": best.loss},
                     "published law": {"lr": advice.lr, "batch_tokens": advice.batch_tokens,
                                       "excess": 100 * published[n, d]},
                     "refitted, cell left out": number(refitted[n, d]), "best pair of the others": 100 * pair[n, d]})
    means = {name: number(float(np.mean(list(found.values())))) for name, found in
             (("published law", published), ("refitted, cell left out", refitted), ("best pair of the others", pair))}
    write_json(Path(__file__).parent / "sweep.json", {
        "runs": len(runs), "diverged": len(result["cells"]) - len(runs), "measure": result["measure"],
        "law": result["law"], "mean excess, percent": means, "cells": rows})


if __name__ == "__main__":
    main()
