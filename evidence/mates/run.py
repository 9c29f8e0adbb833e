"""Selection towards a target, a dozen ways at equal FLOPs: `TILTH_DATA=... python run.py FOLDER [ARM...]`; protocol.md.

Runs are made in FOLDER, one after the other, seed by seed; finished ones are skipped. With names of arms, only these
(and what stands in FOLDER already). Writes result.json here and in ../preselect, and runs.json
here.
"""

import sys
from pathlib import Path
from typing import Any

import ladder
import numpy as np
import setting
import text

from tilth.recipe.files import read_json, write_json
from tilth.stages import Recipe
from tilth.trial.statistics import paired, verdict
from tilth.trial.trial import Trial

HERE = Path(__file__).parent
STEPS, LR, BATCH, SEEDS = 600, 8e-3, 1024, 5
KEEP, STRETCH = 0.2, 1100  # units of a stretch: the first is random, three are chosen anew
BAND = {"low": 0.7, "high": 0.9}
MIX = {"en_masc": 0.3, "en_movie_reviews": 0.2, "en_novels": 0.15, "en_us_speeches": 0.1, "en_product_reviews": 0.05,
       "en_biomed_articles": 0.05, "en_wikitext2": 0.05, "en_uk_service_manual": 0.05, "en_stackexchange_coffee": 0.05}
GROUPS = {"html": ["en_wiki_html"], "latex": ["en_math_openlogic", "en_math_stacks"],
          "technical": ["en_peps", "en_rust_book", "en_uk_service_manual"],
          "official": ["en_fomc_minutes", "en_us_speeches", "en_biomed_articles"],
          "novels": ["en_novels", "en_wikitext2"],
          "informal": ["en_movie_reviews", "en_product_reviews", "en_stackexchange_coffee", "en_masc"]}
FOUR = ("html", "latex", "technical", "informal")  # the rungs whose order is clear

RESULTS = (
    ("mates", "Below random at equal FLOPs, oracle, influence model and scoring included",
     "average accuracy of 9 tasks 45.8 against 44.5 of random (410M), 47.5 against 46.4 (1B), at equal tokens (Yu et "
     "al. 2024, table 1)", HERE),
    ("preselect", "Below random at equal FLOPs, the ladder of models included",
     "mean of 7 tasks 33.4 against 28.1 of random (1B, 30B tokens, 10 % kept), the ladder not counted (Shum et al. "
     "2025, table 1)", HERE.parent / "preselect"))


def arms(folder: Path) -> dict[str, dict[str, Any]]:
    """What each arm adds to the plain recipe: {"policy", "before"}."""
    parts = text.split(folder)
    data, judge = ladder.by_data(folder, GROUPS), ladder.judge(folder)
    four = ladder.by_data(folder, {name: GROUPS[name] for name in FOUR}, share=0.04, called="by_data_four")
    near = {"path": str(parts["pieces"]), "tokens": 6144}
    whole = {"path": str(parts["target"]), "tokens": 1_000_000}

    def selector(kind: str, before: float = 0.0, stretch: int | None = None, **fields: Any) -> dict[str, Any]:
        policy: dict[str, Any] = {"selector": {"kind": kind, "keep": KEEP} | fields}
        return {"policy": policy | ({"stretch_units": stretch} if stretch else {}), "before": before}

    def preselect(of: ladder.Ladder, order: list[str], **fields: Any) -> dict[str, Any]:
        return selector("preselect", of.flops, losses=str(of.losses), models=order, **fields)

    def mates(**fields: Any) -> dict[str, Any]:
        return selector("mates", stretch=STRETCH, **{"reference": near, "probes": 150, "held_back": 0.1,
                                                   "influence": "first",
                                                   "scorer": {"kind": "ngrams", "penalties": [30.0]}} | fields)

    return {
        "random": {},
        "fixed-mix": {"policy": {"mixture": {"kind": "fixed", "weights": MIX}}},
        "dsir": selector("importance", reference=whole),
        "quality": selector("quality", positive=str(parts["target"])),
        "perplexity": {"policy": {"selector": {"kind": "perplexity", "path": str(judge.losses), **BAND}},
                       "before": judge.flops},
        "preselect": preselect(data, data.order),
        "preselect-four": preselect(four, four.order),
        "preselect-four-half": preselect(four, four.order, keep=0.5),
        "preselect-four-wrong-order": preselect(four, wrong(four.order), keep=0.5),
        "mates": mates(),
        "mates-frozen": mates(frozen=True),
        "mates-diverse": mates(diversity={"kind": "quota"}),
        "mates-quota": mates(diversity={"kind": "quota", "cap": 1.0}),
        "mates-facility": mates(diversity={"kind": "facility"}),
        "influence-mixture": {"policy": {"mixture": {"kind": "influence", "reference": near, "probes": 210,
                                                     "influence": "first"}, "stretch_units": STRETCH}},
        "semdedup": selector("semdedup", start=0)}


def wrong(order: list[str]) -> list[str]:
    """The negative control's order: a fixed shuffle, as far from the true one as from its reverse."""
    return [order[place] for place in (2, 0, 3, 1)]


def made(folder: Path, names: list[str]) -> list[Recipe]:
    """The recipes of the trial, random first."""
    parts = arms(folder)
    unknown = [name for name in names if name not in parts]
    if unknown:
        sys.exit(f"There is no arm {', '.join(unknown)}; there are {', '.join(parts)}.")
    found = []
    for name in names or parts:
        policy, before = parts[name].get("policy"), parts[name].get("before", 0.0)
        found.append(setting.recipe(name, folder, {"steps": STEPS, "before": before}, LR, BATCH, policy=policy,
                                    part="test"))
    return found


Runs = dict[str, list[Any]]


def difference(runs: Runs, one: str, other: str) -> dict[str, Any]:
    """One arm less another over the seeds that both have, and documents, on the test text; `natural`: on the pool's
    held-out text."""
    seeds = min(len(runs[one]), len(runs[other]))

    def both(bits: Any) -> list[np.ndarray]:
        return [np.stack([bits(run) for run in runs[name][:seeds]]) for name in (one, other)]

    first = runs[one][0]
    found = paired(*both(lambda run: run.bits), first.bytes)
    natural = paired(*both(lambda run: np.array(run.tasks["held_out"]["bits"])),
                     np.array(first.tasks["held_out"]["bytes"]))
    keys = ("difference", "interval", "interval_seeds")
    return {**{key: found[key] for key in (*keys, "by_seed", "wins")}, "natural": {key: natural[key] for key in keys}}


def row(runs: list[Any]) -> dict[str, Any]:
    """What an arm's runs have in common: bits per byte, FLOPs, steps, seconds, what was chosen."""
    summaries = [read_json(run.folder / "manifest.json")["summary"] for run in runs]
    sources = [{one["source"]: one["tokens"] for one in summary["policy"]["sources"]} for summary in summaries]
    shares = {name: float(np.mean([one[name] / sum(one.values()) for one in sources])) for name in sources[0]}
    natural = [np.sum(run.tasks["held_out"]["bits"]) / np.sum(run.tasks["held_out"]["bytes"]) for run in runs]
    stages = [[{key: value for key, value in stage.items() if key != "anchors"}
               for stage in summary["policy"]["selector"].get("stages", [])] for summary in summaries]
    return {"bits_per_byte": [run.bits_per_byte for run in runs], "natural": [float(value) for value in natural],
            "flops": [run.flops for run in runs], "steps": [run.steps for run in runs],
            "seconds": [run.seconds for run in runs], "cpu_seconds": [run.cpu_seconds for run in runs],
            "shares": shares, **({"stages": stages} if any(stages) else {})}


def report(runs: Runs) -> None:
    """result.json of both methods, and runs.json, the table of all arms."""
    table = {name: row(several) for name, several in runs.items()}
    write_json(HERE / "runs.json", table)
    for method, claim, published, place in RESULTS:
        if len(runs.get(method, ())) < SEEDS:
            continue
        against = {name: difference(runs, method, name) for name in runs if name != method}
        verdict_of = against["random"]
        mean, base = (float(np.mean(table[name]["bits_per_byte"])) for name in (method, "random"))
        off = max(abs(flops / table["random"]["flops"][0] - 1) for flops in table[method]["flops"])
        write_json(place / "result.json", {
            "method": method, "claim": claim, "published": published, "baseline": "random units, tuned, equal FLOPs",
            "metric": "bits per byte of unseen text of the target (contemporary American English), less is better",
            "value": mean, "baseline_value": base, "difference": verdict_of["difference"],
            "interval": verdict_of["interval"], "seeds": [run.seed for run in runs[method]],
            "budget": f"{table['random']['flops'][0]:.4g} FLOP a run, choosing and what it needed before included (off "
                      f"by {100 * off:.2g} %); {np.mean(table[method]['seconds']):.0f} s against "
                      f"{np.mean(table['random']['seconds']):.0f} s",
            "verdict": judged(method, verdict_of, runs), "against": against})


def judged(method: str, found: dict[str, Any], runs: Runs) -> str:
    """The protocol's verdict; PreSelect's is mixed at best while its better made ladder ends above random."""
    says = verdict(found["interval"], found["interval_seeds"])
    if says == "shows" and method == "preselect" and "preselect-four" in runs and (
            difference(runs, "preselect-four", "random")["difference"] >= 0):
        return "mixed"
    return {"shows": "shows", "reversed": "does not show"}.get(
        says, "mixed" if found["difference"] < 0 else "does not show")


def standing(folder: Path) -> Runs:
    """Of every arm, whichever were asked for now, the first seeds that are finished, if there are two or more."""
    trial, runs = Trial(made(folder, []), SEEDS, folder / "trial", measure="test"), {}
    for recipe in trial.recipes:
        found = trial.leading(recipe)
        if len(found) > 1:
            runs[recipe.name] = found
        if len(found) < SEEDS:
            print(f"{recipe.name}: {len(found)} of {SEEDS} seeds", flush=True)
    return runs


def main() -> int:
    if len(sys.argv) < 2:
        print("Name a folder for the runs.", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    trial = Trial(made(folder, sys.argv[2:]), SEEDS, folder / "trial", measure="test")
    trial.run()
    report(standing(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
