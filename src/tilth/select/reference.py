"""Reference sets: what a selector measures usefulness against, kept apart from what is trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.data.packing import pack
from tilth.data.pool import Pool
from tilth.data.records import Quarantine
from tilth.data.seeding import generator
from tilth.recipe import BadInput, Config
from tilth.recipe.frame import nearest
from tilth.select.protocols import Plan

PIECES, SHORTEST = 16, 64  # pieces of a reference, at least; tokens of one that is cut, at least


class TokenArrays:
    """Units in memory that can be packed and batched like those of a pool. values int64 (N,), offsets (U + 1,).

    skip (U,): leading tokens of each unit that are seen but not predicted (default: none).
    """

    def __init__(self, arrays: Sequence[np.ndarray], end_of_text: int, skip: Sequence[int] | None = None):
        self.skip = np.zeros(len(arrays), np.int64) if skip is None else np.asarray(skip, np.int64)
        self._values = np.concatenate([np.asarray(one, np.int64) for one in arrays] or [np.zeros(0, np.int64)])
        self._offsets = np.concatenate([[0], np.cumsum([len(one) for one in arrays])]).astype(np.int64)
        self.end_of_text = end_of_text
        self.source = np.zeros(len(arrays), np.int32)

    def __len__(self) -> int:
        return len(self.source)

    def values(self, name: str) -> np.ndarray:
        return self._values

    def offsets(self, name: str) -> np.ndarray:
        return self._offsets

    def lengths(self, name: str = "tokens") -> np.ndarray:
        return np.diff(self._offsets)


class Reference(Config):
    """Text that stands for what the model should become good at.

    path: a file or folder of any input format; or a task, as JSON lines with `context` and `target`, of which the
    target alone is predicted. Without it, a share of the pool's own records (of `sources`, if given) is held back:
    measured against, never trained on. tokens: how much of it is used, spread evenly over it, in pieces of at most a
    sixteenth, so that a few long documents are no more than what was asked for. The held-out text of a
    run is never a reference, so that its score stays unseen.
    """

    path: Path | None = None
    sources: list[str] = Field(default_factory=list)
    share: float = Field(0.02, gt=0, lt=1, description="of the records, held back where there is no path")
    tokens: int = Field(16384, ge=1)

    def files(self) -> list[Path]:
        return [self.path] if self.path is not None and self.path.is_file() else []

    def held_back(self, pool: Pool, seed: int) -> np.ndarray:
        """Units kept out of training for this reference, bool (U,): whole records."""
        if self.path is not None:
            return np.zeros(len(pool), bool)
        mask = held_back(pool, self.share, seed, "reference")
        for name in self.sources:
            if name not in pool.sources:
                raise BadInput(f"The reference names source '{name}', which the pool does not have"
                               f"{nearest(name, pool.sources)} Sources: {', '.join(pool.sources)}.")
        if self.sources:
            mask &= np.isin(pool.source, [pool.sources.index(name) for name in self.sources])
        if not mask.any() or mask.all():
            raise BadInput(f"A share of {self.share} of the records leaves nothing to measure against, or nothing to "
                           f"train on; change `share`, or give the reference a `path`.")
        return mask

    def units(self, pool: Pool, seed: int) -> TokenArrays:
        """The reference's units, about `tokens` tokens of them."""
        if self.path is None:
            arrays = [np.asarray(pool.get("tokens", int(unit))) for unit in np.flatnonzero(self.held_back(pool, seed))]
        elif pairs := read_pairs(self.path):
            contexts, targets = (pool.tokenizer().encode_batch(side) for side in zip(*pairs, strict=True))
            whole = [np.concatenate(pair) for pair in zip(contexts, targets, strict=True)]
            kept = spread(whole, self.tokens)
            skip = {id(one): len(context) for one, context in zip(whole, contexts, strict=True)}
            return TokenArrays(kept, pool.end_of_text, [skip[id(one)] for one in kept])
        else:
            arrays = tokenized(read_texts(self.path), pool)
        most = max(SHORTEST, self.tokens // PIECES)
        pieces = [one[at:at + most] for one in arrays for at in range(0, len(one), most)]
        return TokenArrays(spread(pieces, self.tokens), pool.end_of_text)


def measuring_flops(plan: Plan, reference: TokenArrays, lengths: np.ndarray, order: str) -> float:
    """FLOPs of measuring the influence of units of so many tokens (n,) on a reference: a step on each and a look at the
    reference after it; or to first order the reference's gradient, and each unit's or two looks at all in rows."""
    whole = pack(reference.lengths(), plan.length).rows * plan.flops_per_row
    if order == "batched":
        return whole + 2 / 3 * pack(lengths, plan.length).rows * plan.flops_per_row
    return 3 * plan.forward(float(lengths.sum())) + whole * ((len(lengths) + 1) / 3 if order == "step" else 1)


def held_back(pool: Pool, share: float, seed: int, purpose: str) -> np.ndarray:
    """Units of a random share of the records, bool (U,); another purpose holds back others."""
    record = np.asarray(pool.column("record"))
    return (generator(seed, f"held back for {purpose}").random(int(record.max()) + 1) < share)[record]


def spread(arrays: list[np.ndarray], tokens: int) -> list[np.ndarray]:
    """Every n-th of the arrays, so that about `tokens` tokens remain."""
    arrays = [one for one in arrays if len(one)]
    total = sum(len(one) for one in arrays)
    if total <= tokens:
        return arrays
    count = max(1, round(len(arrays) * tokens / total))
    return [arrays[int((place + 0.5) * len(arrays) / count)] for place in range(count)]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(context, target) of each line of a task in JSON lines; empty where the file is something else."""
    if path.suffix != ".jsonl" or not path.is_file():
        return []
    with open(path, encoding="utf-8") as file:
        first = json.loads(file.readline() or "{}")
        if not isinstance(first, dict) or not {"context", "target"} <= first.keys():
            return []
        lines = [first, *(json.loads(line) for line in file if line.strip())]
    for number, line in enumerate(lines, 1):
        if not (isinstance(line.get("context"), str) and isinstance(line.get("target"), str) and line["target"]):
            raise BadInput(f"{path}, line {number}, must have `context` and `target` as text, the target not empty.")
    return [(line["context"], line["target"]) for line in lines]


def read_texts(path: Path) -> list[str]:
    """All texts of an input in any format; BadInput where there is none or one cannot be read."""
    from tilth.data.auto import AutoInput

    with Quarantine() as quarantine:
        batches = list(AutoInput(path=str(path), on_bad="error").read(quarantine))
    texts = [text for batch in batches for text in batch.column("text").to_pylist()]
    if not texts:
        raise BadInput(f"{path} holds no text to measure against.")
    return texts


def tokenized(texts: Sequence[str], pool: Any) -> list[np.ndarray]:
    """Each text as the pool's tokenizer cuts it, with its end-of-text token."""
    return [np.append(ids, pool.end_of_text) for ids in pool.tokenizer().encode_batch(texts)]
