"""What the studies of selection have in common: data, model, schedule, measures. Every arm is this recipe with another
policy (or model, rate, batch)."""

from pathlib import Path
from typing import Any

import text

from tilth.recipe import parse
from tilth.recipe.files import read_json_lines
from tilth.stages import Recipe

LENGTH = 128
MODEL = {"kind": "transformer", "layers": 2, "width": 96, "heads": 4, "feed_forward": 256, "context": LENGTH}


def documents(path: Path, name: str, every: int = 1) -> dict[str, Any]:
    """A task that measures the bits of whole documents, or of every n-th."""
    return {"kind": "answer_bits", "name": name,
            "rows": [{"query": "", "answer": row["text"]} for row in read_json_lines(path)[::every]]}


def recipe(name: str, folder: Path, budget: dict[str, Any], lr: float, batch: int, *,
           policy: dict[str, Any] | None = None, part: str = "tuning", seed: int = 0,
           model: dict[str, Any] | None = None, pool: Path | None = None, every: int = 1) -> Recipe:
    """One arm. part: which text it is measured on, every n-th document; pool: another than pool.jsonl."""
    parts = text.split(folder)
    stages = {
        "curate": {"kind": "curate", "inputs": [{"kind": "jsonl", "path": str(pool or parts["pool"])}],
                   "held_out": {"share": 0.05, "minimum_bytes": 131_072}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bpe", "vocab_size": 1024}, "unit_tokens": LENGTH},
        "pretrain": {"kind": "pretrain", "model": {**MODEL, **(model or {})}, "length": LENGTH, "batch_tokens": batch,
                     "optimizer": {"kind": "adamw", "lr": lr}, "policy": policy or {}, "budget": budget,
                     "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.4}, "held_out_every": 1e9,
                     "precision": "fp32"},
        "evaluate": {"kind": "evaluate", "tasks": [documents(parts[part], part, every)]}}
    return parse(Recipe, {"name": name, "seed": seed, "stages": stages})
