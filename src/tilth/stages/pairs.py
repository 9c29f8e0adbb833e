"""The stage that turns image-text pairs into a pool, and the stream of pairs that a `train` stage reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from tilth.data import locations
from tilth.data.batch import Batch
from tilth.data.pairs import PairsInput, padded, write_pairs
from tilth.data.pool import Pool
from tilth.data.records import Quarantine
from tilth.data.streams import Inputs, StreamConfig, UnitStream
from tilth.data.tokenizer import BpeTokenizer, TokenizerChoice
from tilth.data.trace import compress_rows, decompress_rows
from tilth.recipe.console import say
from tilth.recipe.errors import BadInput
from tilth.select.policy import Policy, PolicyConfig
from tilth.stages.stage import Context, Stage


class PairsStage(Stage):
    """Image-text pairs to a pool of units with pixels and tokens.

    test: pairs with a label each (`concept`), for zero-shot accuracy; they are written to test/ and never trained on.
    most_tokens: of a caption, the end-of-text token among them; longer ones are cut.
    """

    kind: str = "pairs"
    input: PairsInput
    test: PairsInput | None = None
    tokenizer: TokenizerChoice = BpeTokenizer(vocab_size=2048)  # type: ignore[valid-type]
    most_tokens: int = Field(32, ge=2)

    def files(self) -> list[dict[str, Any]]:
        read = [one for one in (self.input, self.test) if one is not None]
        return [*[found for one in read for found in one.fingerprint()],
                *[locations.fingerprint(str(path)) for path in self.tokenizer.files()]]

    def run(self, context: Context) -> dict[str, Any]:
        if self.test is not None and self.test.shape != self.input.shape:
            raise BadInput(f"`test` makes images of shape {self.test.shape}, `input` of {self.input.shape}; set the "
                           f"same size and colours.")
        with Quarantine(context.folder / "quarantine.jsonl") as quarantine:
            # Two readings: a tokenizer must have seen all captions before the first is encoded.
            built = self.tokenizer.build(pair.caption for pair in self.input.read(Quarantine()))
            written = write_pairs(self.input.read(quarantine), self.input.shape, built, context.folder,
                                  self.input.source or self.input.path.stem, self.most_tokens)
            tested = 0 if self.test is None else write_pairs(
                self.test.read(quarantine), self.test.shape, built, context.folder / "test",
                self.test.source or self.test.path.stem, self.most_tokens)
            built.save(context.folder)
            counts = dict(quarantine.counts)
        say(f"  {written} pairs of {' x '.join(map(str, self.input.shape))} pixels, {tested} to test, vocabulary "
            f"{built.vocab_size}")
        return {"pairs": written, "test": tested, "vocab_size": built.vocab_size, "quarantined": counts}


class PairsStream(StreamConfig):
    """The pairs of a stage of kind pairs, under a policy: by default each pair once in a pass."""

    kind: str = "pairs"
    input: str = "pairs"
    policy: PolicyConfig = PolicyConfig()

    def reads(self) -> list[str]:
        return [self.input]

    def files(self) -> list[Path]:
        return self.policy.files()

    def build(self, inputs: Inputs, seed: int) -> "PairStream":
        pool = Pool.open(inputs(self.input))
        if "pixels" not in pool.fields:
            raise BadInput(f"The pool of the stage '{self.input}' holds no images; read pairs with a stage of kind "
                           f"pairs.")
        return PairStream(pool, self.policy.build(pool, seed))


class PairStream(UnitStream):
    """Batches `pixels (B, H, W, C) uint8`, `tokens (B, L) int64`, `held (B, L) bool` of what a policy draws, in order.

    L is the longest caption of the pool. State: the units of the stretch, the next of them, the policy's own.
    """

    def __init__(self, pool: Pool, policy: Policy):
        self.pool, self.policy = pool, policy
        self.length = int(pool.lengths("tokens").max())
        self.facts = {"image_shape": tuple(pool.facts["image_shape"]), "vocab_size": pool.vocab_size,
                      "caption_length": self.length}
        self.needs_losses = policy.needs_losses
        self.stretch, self.drawn, self.next_unit, self.served = -1, np.empty(0, np.int64), 0, 0
        policy.bind(None)

    def next(self, rows: int) -> Batch:
        parts, missing = [], rows
        while missing:
            if self.next_unit >= len(self.drawn):
                self.stretch, self.next_unit = self.stretch + 1, 0
                self.drawn = np.asarray(self.policy.draw(self.stretch), np.int64)
            parts.append(self.drawn[self.next_unit:self.next_unit + missing])
            self.next_unit += len(parts[-1])
            missing -= len(parts[-1])
        units = np.concatenate(parts)
        self.served += rows
        tokens, held = padded([self.pool.get("tokens", int(unit)) for unit in units], self.length)
        batch = {"pixels": torch.from_numpy(self.pool.values("pixels")[units]), "tokens": torch.from_numpy(tokens),
                 "held": torch.from_numpy(held), "unit_id": torch.from_numpy(units),
                 "source": torch.from_numpy(np.asarray(self.pool.source)[units].astype(np.int64)),
                 "weight": torch.ones(rows)}
        if not self.needs_losses:
            batch["weight"] = self.policy.weights(batch, None).float()
        return batch

    def weights(self, batch: Batch, losses: torch.Tensor | None) -> torch.Tensor:
        return self.policy.weights(batch, losses).float()

    def observe(self, unit_id: torch.Tensor, loss: torch.Tensor) -> None:
        self.policy.observe(unit_id.cpu().numpy(), loss.float().cpu().numpy())

    def metrics(self) -> dict[str, float]:
        return self.policy.metrics()

    def report(self) -> dict[str, Any]:
        return {"pairs": self.served, "passes": self.served / len(self.pool), "policy": self.policy.report()}

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "stretch": self.stretch, "drawn": compress_rows(self.drawn), "next": self.next_unit,
                "served": self.served, "policy": self.policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != 1:
            raise BadInput(f"The state of the stream has version {state.get('version')}; this Tilth reads version 1.")
        self.policy.load_state_dict(state["policy"])
        self.stretch, self.drawn = state["stretch"], decompress_rows(state["drawn"])
        self.next_unit, self.served = state["next"], state["served"]
