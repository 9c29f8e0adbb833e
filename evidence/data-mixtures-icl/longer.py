"""Is it for want of training? One seed, more steps: `python evidence/data-mixtures-icl/longer.py RUNS [ARM TIMES ...]`.

Not part of the verdict; see the last part of protocol.md. Writes longer.json, a cell a line, next to the cells of the
same seed in runs.json.
"""

import sys
from pathlib import Path

import run
import torch

from tilth.recipe.files import read_json, write_json

PATH, SEED = run.HERE / "longer.json", 0
WANTED = (("coverage", 3), ("mixture", 2))


def main() -> int:
    torch.set_num_threads(1)
    found = read_json(PATH) if PATH.exists() else []
    wanted = [(arm, int(times)) for arm, times in zip(sys.argv[2::2], sys.argv[3::2], strict=True)] or WANTED
    for arm, times in wanted:
        families, steps = run.ARMS[arm]
        if not any((one["arm"], one["steps"]) == (arm, steps * times) for one in found):
            run.ARMS[arm] = families, steps * times
            one = run.cell(arm, SEED, Path(sys.argv[1]) / f"{times}x")
            found = [*(read_json(PATH) if PATH.exists() else []), one]  # another process may have added a cell
            write_json(PATH, found)
            print(arm, one["steps"], {name: round(family["late"], 4) for name, family in one["families"].items()},
                  flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
