"""Shards that managers wrote to disk: `step-XXXXXXXX/rank-R.shard`, a line of JSON (the header) and the bytes."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tilth.recipe.errors import BadInput
from tilth.recipe.files import writing
from tilth.train.survive.region import checksum


def name_of(step: int, rank: int) -> str:
    return f"step-{step:08d}/rank-{rank:04d}.shard"


def write(folder: Path, header: dict[str, Any], shard: np.ndarray) -> None:
    """The file appears whole or not at all, and this rank's files of all but the two newest steps go; RunFailed on a
    full disk."""
    with writing(folder / name_of(header["step"], header["rank"])) as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(shard.data)
    for old in sorted(folder.glob(f"step-*/{name_of(0, header['rank']).partition('/')[2]}"))[:-2]:
        old.unlink()
        with contextlib.suppress(OSError):  # other ranks' shards are still in it
            old.parent.rmdir()


def read(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """(header, shard); BadInput where the file was cut short or changed."""
    raw = np.fromfile(path, np.uint8)
    line, _, _ = raw[:1 << 16].tobytes().partition(b"\n")
    try:
        header = json.loads(line)
        shard = raw[len(line) + 1:]
        if len(shard) != header["bytes"] or checksum(shard) != header["checksum"]:
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"The shard {path} was cut short or changed ({error}).") from error
    return header, shard


def newest(folder: Path, world: int, identity: int) -> int | None:
    """The newest step of which every rank's shard is there and whole, of one incarnation and this identity."""
    names = [re.fullmatch(r"step-(\d{8})", path.name) for path in folder.glob("step-*")]
    for step in sorted((int(match[1]) for match in names if match), reverse=True):
        try:
            headers = [read(folder / name_of(step, rank))[0] for rank in range(world)]
        except (OSError, BadInput):
            continue
        if {(one["incarnation"], one["identity"]) for one in headers} == {(headers[0]["incarnation"], identity)}:
            return step
    return None
