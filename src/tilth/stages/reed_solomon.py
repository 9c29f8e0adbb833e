"""Reed-Solomon parity, for groups that must survive several losses at once; by zfec. Lives here because the training
rooms import torch and numpy alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from tilth.recipe.errors import BadInput
from tilth.train.survive.parity import Parity, TooFewShards


class ReedSolomon(Parity):
    """A systematic Reed-Solomon code over bytes: any `losses` members can be rebuilt. Needs `pip install tilth[rs]`."""

    kind: str = "reed_solomon"
    losses: int = Field(2, ge=1)

    def model_post_init(self, context: Any) -> None:
        _zfec()

    def encode(self, data: Sequence[np.ndarray], which: int, into: np.ndarray) -> None:
        k = len(data)
        coder = _zfec().Encoder(k, k + self.losses)
        (block,) = coder.encode(tuple(bytes(one).ljust(len(into), b"\0") for one in data), (k + which,))
        into[:] = np.frombuffer(block, np.uint8)

    def decode(self, known: Mapping[int, np.ndarray], data_blocks: int) -> list[np.ndarray]:
        if len(known) < data_blocks:
            raise TooFewShards(f"{len(known)} blocks of a stripe are left; {data_blocks} are needed.")
        numbers = sorted(known)[:data_blocks]
        coder = _zfec().Decoder(data_blocks, data_blocks + self.losses)
        blocks = coder.decode(tuple(bytes(known[at]) for at in numbers), tuple(numbers))
        return [np.frombuffer(block, np.uint8) for block in blocks]


def _zfec() -> Any:
    try:
        import zfec
    except ImportError as error:
        raise BadInput("Reed-Solomon parity needs the package zfec: pip install 'tilth[rs]'.") from error
    return zfec
