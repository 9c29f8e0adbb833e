"""What a small model's hidden states say of places, beside rivals without text: `TILTH_DATA=... python run.py FOLDER`.

Trains the model of small.yaml in FOLDER (about two minutes on one core), then probes it and its untrained twin; writes
probes.json and result.json here. Needs `pip install 'tilth[geography]'`.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tilth.analyze.geography_probe import GeographyConfig
from tilth.evaluate import Likelihood, Scorer
from tilth.recipe.files import write_json
from tilth.stages.load import load_recipe
from tilth.stages.model_folder import load_model
from tilth.stages.runner import run_recipe

HERE = Path(__file__).parent
POINTS, TRAIN, SEEDS, T_95 = 2000, 700, 5, 2.776
OWN, UNTRAINED, DISTANCES, COORDINATES = ("probe, full prompt", "untrained, full prompt", "trees, distances",
                                          "trees, coordinates")


def difference(found: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    """r2 of a minus b, paired by seed: mean and 95 % interval."""
    gaps = np.array([one["r2"] - other["r2"] for one, other in zip(found[a], found[b], strict=True)])
    half = T_95 * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return {"mean": float(gaps.mean()), "interval": [float(gaps.mean() - half), float(gaps.mean() + half)]}


def main() -> int:
    data = os.environ.get("TILTH_DATA")
    if not data or len(sys.argv) < 2:
        print("Set TILTH_DATA to the folder that holds text/ and geo/, and name a folder for the run.", file=sys.stderr)
        return 2
    start = time.process_time()
    recipe = load_recipe(str(HERE / "small.yaml"))
    for item in recipe.stages["curate"].inputs:  # type: ignore[attr-defined]
        item.path = str(Path(data) / item.path)
    run_recipe(recipe, Path(sys.argv[1]))
    model, tokenizer = load_model(Path(sys.argv[1]))
    config = GeographyConfig(data=str(Path(data) / "geo" / "cities15000.csv"), points=POINTS, train=TRAIN, seeds=SEEDS)
    found = config.run(Scorer(Likelihood(model, length=model.config.context), tokenizer, quiet=True))
    plain = config.model_copy(update={"prompts": ["full"]}).run(
        Scorer(Likelihood(model.initialize(0), length=model.config.context), tokenizer, quiet=True))
    for name, predictors in found.items():
        predictors[UNTRAINED] = plain[name][OWN]
    blocked = found["blocked"]
    against = {other: difference(blocked, OWN, other) for other in (DISTANCES, COORDINATES, UNTRAINED)}
    above = {other: one["interval"][0] > 0 for other, one in against.items()}
    verdict = "shows" if above[DISTANCES] else "mixed" if above[COORDINATES] and above[UNTRAINED] else "does not show"
    write_json(HERE / "probes.json", found)
    write_json(HERE / "result.json", {
        "method": "geographic-probing", "claim": "A language model's hidden states of a described place say more about "
        "the population around it than models that read no text, in regions that were held out",
        "published": "squared correlation +70 % over nearest neighbours and prompt baselines (finetuned large models)",
        "baseline": "boosted trees on the prompt's ten distances", "metric": "r2 of log population within 60 km, whole "
        "5-degree cells held out", "value": float(np.mean([one["r2"] for one in blocked[OWN]])),
        "baseline_value": float(np.mean([one["r2"] for one in blocked[DISTANCES]])),
        "difference": against[DISTANCES]["mean"], "interval": against[DISTANCES]["interval"],
        "seeds": list(range(SEEDS)), "budget": f"{POINTS} places a seed, one model of 1.2 M tokens, "
        f"{time.process_time() - start:.0f} CPU-seconds", "against": against,
        "r2": {name: {who: float(np.mean([one["r2"] for one in runs])) for who, runs in predictors.items()}
               for name, predictors in found.items()}, "verdict": verdict})
    print(verdict, against)
    return 0


if __name__ == "__main__":
    sys.exit(main())
