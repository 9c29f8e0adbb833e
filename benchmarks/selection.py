"""The figures of selection: what asking the model costs, and what it tells.

    TILTH_DATA=FOLDER python benchmarks/selection.py [--only SECTION]

One thread, CPU-seconds. Data: every TILTH_DATA/text/en_*.jsonl.zst gives the same share of its documents (natural
proportion), as 1.9 million tokens of a byte-pair vocabulary of 1,024 in units of 128; the reference is other text of
one source. Sections:

- losses: the probe's loss pass over units against a plain forward pass over the same rows, taking turns.
- probing: influences of the same units to first order in whole batches and one by one, and by true steps; how well
  they agree; the rate of true steps against that of training.
- linear: a linear n-gram model scoring the pool.
- scorers: n-grams and the small encoder fitted on the same measured units, on units that neither has seen.
- recipe_ngrams, recipe_encoder: runs under `mates` as it comes, with either scorer: shares of the run's FLOPs, told
  apart, and whether the run used up its budget.
"""

import argparse
import functools
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tilth.objectives import Batch
from tilth.recipe import BadInput, parse
from tilth.select.encoder import Encoder
from tilth.select.mates import Mates
from tilth.select.probe import Probe
from tilth.select.reference import Reference
from tilth.select.scorers import NGramScorer
from tilth.select.statistics import spearman
from tilth.stages.pretrain import PretrainStage
from tilth.stages.pretraining import Pretraining
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Context, Hardware, Recipe
from tilth.train import Loop, seeded
from tilth.trial.bench import Claim, measure, run_sections, versions

HERE = Path(__file__).parent
SHARE, LENGTH, BATCH, TARGET = 0.06, 128, 1024, "en_masc"
MODEL = {"kind": "transformer", "layers": 2, "width": 96, "heads": 4, "feed_forward": 256, "context": LENGTH}
WARM, PROBES, UNSEEN, TRUE = 200, 400, 600, 100  # steps before probing; units to fit on, to test on, and of true steps
STEPS, STRETCH = 300, 800


@functools.cache
def data() -> Path:
    """A run folder with curated and tokenized text, and target.jsonl beside it, for the life of the process."""
    if "TILTH_DATA" not in os.environ:
        raise BadInput("Set TILTH_DATA to the folder that holds text/.")
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    place = Path(folder.name)
    with open(place / "pool.jsonl", "w") as pool, open(place / "target.jsonl", "w") as target:
        for path in sorted((Path(os.environ["TILTH_DATA"]) / "text").glob("en_*.jsonl.zst")):
            rows = [json.loads(line) for line in io.TextIOWrapper(pa.CompressedInputStream(str(path), "zstd"), "utf-8")]
            upto = np.cumsum([len(row["text"]) for row in rows], dtype=np.float64)
            order = np.random.default_rng(0).permutation(len(rows))
            upto = np.cumsum([len(rows[one]["text"]) for one in order]) / upto[-1]
            for one, part in zip(order, upto, strict=True):
                line = json.dumps({key: rows[one][key] for key in ("id", "text", "source", "license")}) + "\n"
                if part <= SHARE:
                    pool.write(line)
                elif path.name.startswith(TARGET) and part <= 4 * SHARE:
                    target.write(line)
    run_recipe(parse(Recipe, {"name": "data", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "jsonl", "path": str(place / "pool.jsonl")}],
                   "held_out": {"share": 0.03, "minimum_bytes": 100_000}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bpe", "vocab_size": 1024}, "unit_tokens": LENGTH}}}),
        place / "run")
    return place


_kept: list[tempfile.TemporaryDirectory[str]] = []


def prepare(name: str, **changes: Any) -> Pretraining:
    run = data() / "run"
    (run / name).mkdir(exist_ok=True)
    stage = parse(PretrainStage, {
        "model": MODEL, "length": LENGTH, "batch_tokens": BATCH, "optimizer": {"kind": "adamw", "lr": 8e-3},
        "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.4}, "budget": {"steps": STEPS}, "precision": "fp32",
        "held_out_every": 1e9, "checkpoint": {"seconds": 1e9}, **changes})
    return Pretraining(stage, Context(run, run / name, 0, Hardware(device="cpu")))


@functools.cache
def trained() -> tuple[Pretraining, Loop, Probe, list[Batch]]:
    """A run after WARM steps, a probe of its model, and the batches of a reference."""
    run = prepare("trained", budget={"steps": WARM}, schedule={"kind": "constant", "warmup": 20})
    loop = run.loop()
    loop.run()
    probe = Probe(run.learner, loop.optimizers, loop.settings, run.pool, LENGTH)
    reference = Reference(path=data() / "target.jsonl").units(run.pool, 0)
    return run, loop, probe, probe.batches(np.arange(len(reference)), reference)


def units_of(count: int, skip: int = 0) -> np.ndarray:
    pool = trained()[0].pool
    return np.random.default_rng(0).permutation(np.flatnonzero(pool.lengths() > 8))[skip:skip + count]


def rate(count: float, work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return count / (time.process_time() - start)


def losses(arguments: argparse.Namespace) -> list[Claim]:
    """The probe packs, sums by unit and puts everything back; the plain pass has its batches built before the clock."""
    run, _, probe, _ = trained()
    units = units_of(600)
    batches = probe.batches(units)
    tokens = float(run.pool.lengths()[units].sum())

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            run.learner.loss(probe.update, batch, seeded("plain")).total.sum()

    paired = measure(lambda: rate(tokens, plain), lambda: rate(tokens, lambda: probe.losses(units)), arguments.rounds)
    return [Claim("probe_loss_pass", paired.ratio, "of a plain forward pass", "<= 1.1", "forward passes under no_grad",
                  "the probe packs, builds batches, sums by unit and restores; "
                  + paired.text("tokens per CPU-second"))]


def probing(arguments: argparse.Namespace) -> list[Claim]:
    _, loop, probe, reference = trained()
    units, few = units_of(PROBES), units_of(TRUE)
    tokens = float(sum(batch["targets"].ne(-100).sum() for batch in reference))
    found: dict[str, np.ndarray] = {}
    seconds, flops = {}, {}
    for order in ("batched", "first", "step"):
        spent, start = probe.spent, time.process_time()
        found[order] = probe.influences(few if order == "step" else units, reference, order)
        seconds[order], flops[order] = time.process_time() - start, probe.spent - spent
    steps = [loop.at.flops / loop.at.cpu_seconds, flops["step"] / seconds["step"]]
    single = measure(lambda: rate(TRUE, lambda: probe.losses(few)),
                     lambda: rate(TRUE, lambda: [probe.losses(few[one:one + 1]) for one in range(TRUE)]), 5)
    about = f"a reference of {tokens:.0f} tokens, {WARM} steps trained"
    return [
        Claim("losses_batched", single.ratio, "times one by one", "> 1", "the probe, a unit a call",
              single.text("units per CPU-second")),
        Claim("influences_batched", seconds["first"] / seconds["batched"], "times one by one", "> 1",
              "the gradient's product, unit by unit",
              f"{about}: {PROBES} units take {seconds['batched']:.2f} CPU-seconds in whole batches, "
              f"{seconds['first']:.2f} one by one; {TRUE} by true steps {seconds['step']:.2f}"),
        Claim("true_steps_rate", steps[1] / steps[0], "of training's FLOPs a second", ">= 0.8", "the training loop",
              f"{about}; each step restores weights and moments, and looks at the whole reference"),
        Claim("agreement_batched", spearman(found["step"], found["batched"][:TRUE]), "rank correlation with true steps",
              "> 0", None, f"{TRUE} units, {about}"),
        Claim("agreement_first", spearman(found["step"], found["first"][:TRUE]), "rank correlation with true steps",
              "> 0", None, f"{TRUE} units, {about}")]


def linear(arguments: argparse.Namespace) -> list[Claim]:
    run = trained()[0]
    model = NGramScorer().build(run.pool, 0)
    model.fit(units_of(PROBES), np.random.default_rng(0).normal(size=PROBES), 0)
    every = np.arange(len(run.pool))
    size = float(run.pool.column("bytes").sum()) / 1e6
    model.scores(every)
    best = [rate(size, lambda: model.scores(every)) for _ in range(arguments.rounds)]
    return [Claim("linear_scorer", float(np.median(best)), "MB of text per CPU-second", "> 20", None,
                  f"tokens up to bigrams, {size:.1f} MB of text in {len(every)} units, median of {arguments.rounds}")]


def scorers(arguments: argparse.Namespace) -> list[Claim]:
    """Both learn from the same units, and are tested on others."""
    run, _, probe, reference = trained()
    learn, test = units_of(PROBES), units_of(UNSEEN, PROBES)
    target, truth = (-probe.influences(one, reference, "batched") for one in (learn, test))
    target = (target - target.mean()) / target.std()
    ranks, notes = {}, {}
    for name, config in (("ngrams", NGramScorer()), ("encoder", Encoder())):
        start, model = time.process_time(), config.build(run.pool, 0)
        figures, flops = model.fit(learn, target, 0)
        fitted = time.process_time() - start
        ranks[name] = spearman(model.scores(test), truth)
        notes[name] = (f"{name}: fitted in {fitted:.1f} CPU-seconds and {flops:.2e} FLOPs, rank correlation "
                       f"{figures['spearman']:.3f} on what it held out itself")
    about = f"{PROBES} units measured, {UNSEEN} others to test on, neither limited by a share of FLOPs"
    return [Claim("spearman_ngrams", ranks["ngrams"], "rank correlation on unseen units", "> 0", None,
                  f"{about}; {notes['ngrams']}"),
            Claim("spearman_encoder", ranks["encoder"], "rank correlation on unseen units", "> 0", None,
                  f"{about}; {notes['encoder']}"),
            Claim("default_scorer", ranks["ngrams"] - ranks["encoder"], "rank correlation above the encoder's", ">= 0",
                  "the encoder", "the default, n-grams, against the small encoder on the same unseen units")]


def recipe(kind: str, arguments: argparse.Namespace) -> list[Claim]:
    """A run within the FLOPs of a plain one of STEPS steps. The encoder's reading of every window takes more than the
    default share of so small a model's run, which would be refused; what it learns with is held to its share anyway."""
    more = {"share": 0.6} if kind == "encoder" else {}
    selector = {"kind": "mates", "reference": {"path": str(data() / "target.jsonl")}, "scorer": {"kind": kind},
                **more}
    plain = prepare("plain")
    budget = STEPS * plain.stage.rows * (plain.learner.flops_per_row or 0.0)
    run = prepare(f"mates-{kind}", budget={"flops": budget}, policy={"stretch_units": STRETCH, "selector": selector})
    at = run.loop().run()
    report = run.policy.report()["selector"]
    shares = {name: flops / at.flops for name, flops in report["flops"].items()}
    stages = report["stages"]
    about = (f"{at.tokens} tokens in {at.step} steps, {len(stages)} measurements of {stages[0]['probed']} units (of "
             f"{len(run.policy.selector.measured)} held back; {Mates().probes} by default where there are as many and "
             f"the share pays for them); "
             + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items())
             + "; rank correlations on held-out units " + ", ".join(f"{one['spearman']:.2f}" for one in stages)
             + ", with the influences of the measurement before "
             + ", ".join(f"{one['anchors_spearman_with_last']:.2f}" for one in stages[1:]))
    overhead = Claim(f"overhead_{kind}", sum(shares.values()), "of the run's FLOPs", "<= 0.15", None, about + (
        "; by default such a run is refused, since the encoder is large beside this model" if more else ""))
    return [overhead, Claim(f"learning_{kind}", shares["learning"], "of the run's FLOPs", "<= 0.05", None, about),
            Claim(f"budget_{kind}", abs(at.flops / budget - 1), "of the budget in FLOPs, above or below it", "<= 0.02",
                  None, f"{len(stages)} measurements; ended at {at.flops / budget:.4f} of the budget")]


SECTIONS = {"losses": losses, "probing": probing, "linear": linear, "scorers": scorers,
            "recipe_ngrams": functools.partial(recipe, "ngrams"),
            "recipe_encoder": functools.partial(recipe, "encoder")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    return run_sections("selection", SECTIONS, parser, lambda: versions("polars"), HERE)


if __name__ == "__main__":
    sys.exit(main())
