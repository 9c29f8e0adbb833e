"""Losses of a pool's units under finished models, as a file that selectors read."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tilth.data.pool import Pool
from tilth.objectives import Causal
from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import write_bytes
from tilth.select.probe import Probe
from tilth.select.reference import held_back
from tilth.stages.model_folder import load_model
from tilth.train import Learner, LoopSettings
from tilth.train.device import pick_device

BATCH_TOKENS = 8192


def write_losses(models: Sequence[Path], pool_folder: Path, output: Path, share: float = 1.0, seed: int = 0,
                 device: str = "auto") -> dict[str, Any]:
    """Parquet with `unit_id` and, for each model, the mean loss of the unit in nats a token, in a column with its name;
    a single model's column is called `score`. `share` of the records, whole, chosen by `seed`."""
    import polars as pl

    pool = Pool.open(pool_folder)
    chosen = np.ones(len(pool), bool) if share >= 1 else held_back(pool, share, seed, "losses")
    units = np.flatnonzero(chosen & (pool.lengths() > 0))
    if not len(units):
        raise BadInput(f"A share of {share} of the pool {pool_folder} is no unit; take more.")
    names = ["score"] if len(models) == 1 else model_names(models)
    spent: list[float] = []
    columns = {name: unit_losses(path, pool, units, pick_device(device), spent.append) for name, path in
               zip(names, models, strict=True)}
    buffer = io.BytesIO()
    pl.DataFrame({"unit_id": pool.column("unit_id")[units], **columns}).write_parquet(buffer)
    write_bytes(output, buffer.getvalue())
    say(f"losses of {quantity(len(units))} units under {', '.join(names)}: {output}")
    return {"output": str(output), "units": len(units), "flops": sum(spent),
            "mean_loss": {name: float(values.mean()) for name, values in columns.items()}}


def unit_losses(path: Path, pool: Pool, units: np.ndarray, device: torch.device,
                spend: Callable[[float], None] = lambda flops: None) -> np.ndarray:
    """Mean loss of each unit under one model, float64 (n,); `spend` is told the FLOPs. BadInput where the model was
    made for other tokens."""
    model, tokenizer = load_model(path)
    if (tokenizer.vocab_size, tokenizer.end_of_text) != (pool.vocab_size, pool.end_of_text):
        raise BadInput(f"The model {path} and the pool {pool.folder} do not have the same tokenizer; tokenize the data "
                       f"with the model's own.")
    length = min(model.config.context, 1024)
    learner = Learner(model, Causal(), flops_per_row=length * model.config.flops_per_token(length))
    learner.to(device)
    settings = LoopSettings(steps=1, rows=1, micro_rows=max(1, BATCH_TOKENS // length), device=device)
    optimizer = torch.optim.SGD(learner.modules.parameters(), lr=0.0)  # the probe's; nothing is stepped here
    return Probe(learner, {learner.updates[0]: optimizer}, settings, pool, length, spend).losses(units)


def model_names(models: Sequence[Path]) -> list[str]:
    """The folders' names, or their whole paths where two are called the same."""
    names = [path.name for path in models]
    return names if len(set(names)) == len(names) else [str(path) for path in models]
