"""Small models whose losses tell units apart (PreSelect, the perplexity band): made once, their FLOPs counted.

    by_size   one family by width, all trained alike on the pool: the paper's kind of ladder
    by_data   equal models, each trained on some sources: their order by loss on the target is not that of their size

`Ladder.losses` has a column a model; `order` lists them by loss on target.jsonl, weakest first; `flops` is what all of
it took: training, the losses of the sample, and the losses of the target.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import setting
import text

from tilth.data.pool import Pool
from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.stages.losses import write_losses
from tilth.stages.runner import run_recipe
from tilth.trial.trial import prepared, share_stages

LR, BATCH, SEED = 8e-3, 512, 50
EVERY = 4  # the ability is the loss on every fourth document of target.jsonl


@dataclass(frozen=True)
class Ladder:
    losses: Path
    order: list[str]
    flops: float
    target: dict[str, float]  # bits per byte of target.jsonl


def model(width: int) -> dict[str, Any]:
    return {"layers": 1, "width": width, "heads": 2, "feed_forward": 3 * width}


def climb(folder: Path, name: str, rungs: dict[str, dict[str, Any]], tokens: int, share: float,
          called: str = "") -> Ladder:
    """Train each rung {"model", "policy"} on so many tokens, and take the losses of a share of the records. Ladders of
    one name share the rungs that they have in common, and each pays for all of its own."""
    place, runs = folder / "ladders" / (called or name), folder / "ladders" / "runs"
    made = place / "ladder.json"
    if not made.exists():
        flops, target = 0.0, {}
        size = sum(len(row["text"].encode()) for row in read_json_lines(text.split(folder)["target"])[::EVERY])
        for rung, parts in rungs.items():
            whole = prepared(setting.recipe(f"{name}-{rung}", folder, {"tokens": tokens}, LR, BATCH, part="target",
                                           every=EVERY, seed=SEED, **parts))
            run = runs / f"{whole.name}-seed-{SEED}"
            share_stages(whole, run, runs)
            run_recipe(whole, run)
            scored = read_json(run / "evaluate" / "results.json")["target"]["gold_bits_per_byte"]
            summary = read_json(run / "pretrain" / "manifest.json")["summary"]
            # A forward pass is a third of training; the target has about as many bytes a token as what was trained on.
            pool = Pool.open(run / "tokenize")
            tokens_of_target = size * pool.lengths().sum() / np.asarray(pool.column("bytes")).sum()
            flops += summary["flops"] * (1 + tokens_of_target / summary["tokens"] / 3)
            target[whole.name + f"-seed-{SEED}"] = scored["value"]
        place.mkdir(parents=True, exist_ok=True)
        found = write_losses([runs / f"{name}-{rung}-seed-{SEED}" for rung in rungs], run / "tokenize",
                             place / "losses.parquet", share, SEED)
        order = sorted(target, key=lambda rung: -target[rung])
        write_json(made, {"order": order, "flops": flops + found["flops"], "target": target})
    known = read_json(made)
    return Ladder(place / "losses.parquet", known["order"], known["flops"], known["target"])


def by_size(folder: Path, widths: tuple[int, ...] = (16, 20, 24, 32, 40, 48), tokens: int = 51_200,
            share: float = 0.02) -> Ladder:
    return climb(folder, "by_size", {f"w{width}": {"model": model(width)} for width in widths}, tokens, share)


def by_data(folder: Path, groups: dict[str, list[str]], width: int = 32, tokens: int = 51_200, share: float = 0.02,
            called: str = "") -> Ladder:
    """groups: {rung: sources}, each in equal shares."""
    return climb(folder, "by_data", {rung: {"model": model(width), "policy": {"mixture": {
        "kind": "fixed", "weights": dict.fromkeys(sources, 1.0)}}} for rung, sources in groups.items()}, tokens, share,
        called)


def judge(folder: Path, width: int = 16, tokens: int = 256_000) -> Ladder:
    """One very small model and its losses on the whole pool, for the perplexity band."""
    return climb(folder, "judge", {f"w{width}": {"model": model(width)}}, tokens, 1.0)
