"""Stages from outside the package that are quick to run, and a tiny recipe over a folder of text files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from tilth.data import locations
from tilth.recipe import Interrupted, parse
from tilth.recipe.files import read_json, read_json_lines, write_json
from tilth.select.protocols import Weigher, WeigherConfig
from tilth.stages import Context, Recipe, Stage
from tilth.train import Loop

ran: list[str] = []


class Write(Stage):
    """Writes `text` and what the stages of `inputs` wrote; counts its runs."""

    kind: str = "write"
    text: str = "a"
    inputs: list[str] = Field(default_factory=list)
    file: str | None = None

    def reads(self) -> list[str]:
        return self.inputs

    def files(self) -> list[dict[str, Any]]:
        return [] if self.file is None else [locations.fingerprint(self.file)]

    def run(self, context: Context) -> dict[str, Any]:
        ran.append(context.folder.name)
        text = self.text + "".join(read_json(context.input(one) / "out.json") for one in self.inputs)
        text += "" if self.file is None else Path(self.file).read_text()
        if (context.run / "stop").exists():
            raise Interrupted(f"Stopped. To go on, {context.command}.")
        write_json(context.folder / "out.json", text)
        return {"text": text, "seed": context.seed}


class Seeded(Write):
    """A stage whose result depends on the recipe's seed."""

    uses_seed = True


WRITE, SEEDED = f"{__name__}:Write", f"{__name__}:Seeded"


class LossWeigher(Weigher):
    """Weighs units by their share of the global batch's loss."""

    needs_losses = True

    def weights(self, batch, losses):
        return losses / losses.mean()


@contextmanager
def stopped_after(step: int, monkeypatch: Any) -> Iterator[None]:
    """Runs in the block save a checkpoint after `step` and stop there, as at a signal."""
    plain = Loop._call_hooks

    def interrupt(loop: Loop) -> bool:
        better = plain(loop)
        if loop.at.step == step:
            loop.save()
            raise Interrupted("stopped")
        return better

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loop, "_call_hooks", interrupt)
        yield


class ByLoss(WeigherConfig):
    """A weigher that asks for losses."""

    kind: str = "by_loss"

    def build(self, pool, seed):
        return LossWeigher()


def write_corpus(folder: Path, files: int = 24) -> Path:
    """Text files of words in a fixed random order: something small to learn."""
    rng = np.random.default_rng(0)
    words = ["field", "seed", "rain", "plough", "harvest", "the", "a", "grows", "waits", "in", "under", "and"]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = [" ".join(rng.choice(words, 8)) for _ in range(int(rng.integers(3, 12)))]
        (folder / f"{number:03d}.txt").write_text(".\n".join(lines))
    return folder


def tiny(corpus: Path, held_out: bool = True, **pretrain: Any) -> Recipe:
    """Curate, tokenize (bytes), pretrain: a few seconds."""
    model = {"kind": "transformer", "layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "context": 64}
    fields = {"model": model, "length": 32, "batch_tokens": 128, "budget": {"steps": 12},
              "optimizer": {"kind": "muon", "lr": 1e-2}, "schedule": {"kind": "wsd", "warmup": 2},
              "precision": "fp32", "held_out_every": 5, "checkpoint": {"steps": 4}, **pretrain}
    held = {"minimum_bytes": 600, "share": 0.3} if held_out else None
    return parse(Recipe, {"name": "tiny", "seed": 3, "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "files", "path": str(corpus)}], "held_out": held},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 40},
        "pretrain": {"kind": "pretrain", **fields}}})


EXACT = ("step", "tokens", "flops", "loss", "lr", "gradient_norm", "padded", "held_out")


def curve(stage: Path) -> list[dict[str, Any]]:
    """The metrics of a pretrain stage that do not depend on the clock."""
    return [{key: line[key] for key in EXACT if key in line} for line in read_json_lines(stage / "metrics.jsonl")]
