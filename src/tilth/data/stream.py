"""The stream of packed text: a pool under a policy, stretch by stretch, as batches of rows.

A stretch is what the policy hands out at once. Its units are packed best fit into rows, the rows are shuffled, and
served in order; where a stretch ends, a batch goes on into the next one, so that no row is dropped. Everything after
the policy's draw is a pure function of (seed, stretch), so the state is small: the drawn units and a row number.

Shapes: B rows, L positions, U units (pieces of a row) of a batch, P pieces of a stretch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tilth.data.batch import Batch, Pieces, build_batch, join, place_pieces
from tilth.data.packing import pack
from tilth.data.pool import Pool
from tilth.data.seeding import generator
from tilth.data.trace import DrawnLog, compress_rows, decompress_rows
from tilth.recipe import BadInput


class Draws(Protocol):
    """What the stream asks of a policy (`tilth.select.Policy` is one)."""

    @property
    def needs_losses(self) -> bool: ...

    def draw(self, stretch: int) -> np.ndarray:
        """Units of the coming stretch: rows of the pool, int64 (n,), n > 0."""

    def weights(self, batch: Batch, losses: torch.Tensor | None) -> torch.Tensor:
        """How much each unit of the batch counts, float32 (U,). `losses` (U,) if `needs_losses`."""

    def bind(self, probe: Any) -> None:
        """Take what asks the current model about units."""

    def observe(self, unit_id: np.ndarray, loss: np.ndarray) -> None:
        """Mean loss a token (nats) of trained units, both (U,); every process must be told of the whole batch."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class PackedStream:
    """Batches of packed rows from a pool under a policy.

    `next(rows)` gives this process its `rows` of the next rows * world: with any number of processes the same rows
    come in the same order. `log_folder`: where process 0 writes what was drawn (for `tilth trace`). `agree`: has every
    process take the units that process 0 drew.
    """

    def __init__(self, pool: Pool, policy: Draws, row_length: int, seed: int, rank: int = 0, world: int = 1,
                 log_folder: Path | None = None, agree: Callable[[np.ndarray], np.ndarray] = lambda units: units):
        if len(pool) == 0 or not len(pool.values("tokens")):
            raise BadInput(f"The pool {pool.folder} holds no tokens.")
        self.pool, self.policy, self.row_length, self.seed = pool, policy, row_length, seed
        self.rank, self.world, self.agree = rank, world, agree
        self.log = DrawnLog(log_folder) if log_folder is not None and rank == 0 else None
        self.stretch = -1  # the stretch being served; nothing is drawn before the first batch is asked for
        self.row = self.served = 0  # next row of the stretch; rows of all stretches before it
        self.tokens = self.split = 0
        self.drawn = np.empty(0, np.int64)
        self.pieces: Pieces | None = None
        self.stretch_rows = 0

    @property
    def rows(self) -> int:
        """Rows served so far, to all processes together."""
        return self.served + self.row

    @property
    def padded(self) -> float:
        """Share of the positions served so far that held no token."""
        return 1 - self.tokens / (self.rows * self.row_length) if self.rows else 0.0

    @property
    def epoch(self) -> float:
        """Tokens served so far over the tokens of the pool."""
        return self.tokens / len(self.pool.values("tokens"))

    @property
    def needs_losses(self) -> bool:
        """Whether weights come from a first pass without gradient (then `weights` is called with its losses)."""
        return self.policy.needs_losses

    def next(self, rows: int) -> Batch:
        """The next `rows` rows of this process (B = rows)."""
        wanted = rows * self.world
        first, last = self.rank * rows, (self.rank + 1) * rows
        parts: list[Pieces] = []
        done = 0
        while done < wanted:
            pieces = self._current()
            take = min(wanted - done, self.stretch_rows - self.row)
            low, high = max(first - done, 0), min(last - done, take)
            if low < high:
                part = pieces.rows(self.row + low, self.row + high)
                parts.append(part.shifted(done + low - first))
            self.tokens += int(pieces.rows(self.row, self.row + take).length.sum())
            self.row += take
            done += take
        batch = build_batch(self.pool, join(parts), rows, self.row_length)
        if not self.needs_losses:
            batch["weight"] = self.policy.weights(batch, None).float()
        return batch

    def weights(self, batch: Batch, losses: torch.Tensor | None) -> torch.Tensor:
        """The policy's weights (U,) for a batch, given each unit's mean loss (U,) if `needs_losses`."""
        return self.policy.weights(batch, losses).float()

    def bind(self, probe: Any) -> None:
        """Give the policy what asks the current model about units, before the first batch."""
        self.policy.bind(probe)

    def observe(self, unit_id: torch.Tensor, loss: torch.Tensor) -> None:
        """Tell the policy the mean loss a token (nats) of trained units, both (U,)."""
        self.policy.observe(unit_id.detach().cpu().numpy(), loss.detach().float().cpu().numpy())

    def _current(self) -> Pieces:
        """The pieces of the stretch being served; draws the next stretch when it is used up."""
        if self.pieces is None or self.row >= self.stretch_rows:
            drawn = self.agree(np.asarray(self.policy.draw(self.stretch + 1), np.int64))
            self.served, self.row = self.served + self.stretch_rows, 0
            self.stretch += 1
            self._lay_out(drawn)
            self.split += self._split
            if self.log is not None:
                assert self.pieces is not None
                self.log.cut(self.stretch)  # what an abandoned run in the same folder may have left
                self.log.write(self.stretch, self.served, self.pieces, self.pool)
        assert self.pieces is not None
        return self.pieces

    def _lay_out(self, drawn: np.ndarray) -> None:
        offsets = self.pool.offsets("tokens")
        packed = pack(offsets[drawn + 1] - offsets[drawn], self.row_length)
        if packed.rows == 0:
            raise BadInput(f"Stretch {self.stretch} has no token to train on: the policy drew {len(drawn)} units.")
        packed = packed.take(generator(self.seed, "row order", self.stretch).permutation(packed.rows))
        self.drawn, self._split = drawn, packed.split
        self.pieces, self.stretch_rows = place_pieces(self.pool, drawn, packed), packed.rows

    def give_up_rest(self) -> np.ndarray:
        """Begin a new stretch with the next row. Returns the units of the old one of which nothing was served."""
        left = np.empty(0, np.int64)
        if self.pieces is not None:
            served = self.pieces.rows(0, self.row).unit
            left = np.setdiff1d(self.drawn, served)
        self.served, self.row, self.stretch_rows = self.served + self.row, 0, 0
        self.pieces, self.drawn = None, np.empty(0, np.int64)
        return left

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as JSON. The drawn units are kept, not drawn again: a policy that asks the
        model would not choose the same twice."""
        return {"version": 1, "stretch": self.stretch, "row": self.row, "served": self.served, "tokens": self.tokens,
                "split": self.split, "drawn": compress_rows(self.drawn), "policy": self.policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != 1:
            raise BadInput(f"The state of the stream has version {state.get('version')}; this Tilth reads version 1.")
        self.policy.load_state_dict(state["policy"])
        self.stretch, self.served = state["stretch"], state["served"]
        self.row, self.tokens, self.split = state["row"], state["tokens"], state["split"]
        drawn = decompress_rows(state["drawn"])
        if drawn.size and drawn.max() >= len(self.pool):
            raise BadInput(f"The state of the stream names units that the pool {self.pool.folder} does not have.")
        self.pieces, self.stretch_rows = None, 0
        if drawn.size:  # none: the next row begins a new stretch
            self._lay_out(drawn)
        if self.log is not None:
            self.log.cut(self.stretch)
