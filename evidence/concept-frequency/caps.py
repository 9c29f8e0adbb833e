"""Why balancing did not help: other caps, the same seeds: `TILTH_DATA=FOLDER python .../caps.py RUNS`.

Not part of the verdict; see the last part of protocol.md. Writes caps.json, resumable cell by cell.
"""

import os
import sys
from pathlib import Path

import numpy as np
import run
import torch

from tilth.recipe.files import read_json, write_json

PATH, CAPS = run.HERE / "caps.json", (60, 200)


def main() -> int:
    torch.set_num_threads(1)
    found = read_json(PATH) if PATH.exists() else []
    for seed in run.SEEDS:
        rarest = np.argsort(run.plan(seed)[0], kind="stable")[:run.TAIL]
        for cap in CAPS:
            if any((one["cap"], one["seed"]) == (cap, seed) for one in found):
                continue
            run.CAP = cap
            folder = Path(sys.argv[1]).absolute() / f"cap-{cap}"
            one = run.cell("balanced", seed, folder, Path(os.environ["TILTH_DATA"]))
            accuracy = np.array(one["accuracy"])
            found.append({"cap": cap, "seed": seed, "pairs": one["pairs"], "accuracy": float(accuracy.mean()),
                          "rarest": float(accuracy[rarest].mean()), "cpu_seconds": one["cpu_seconds"]})
            write_json(PATH, found)
            print(found[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
