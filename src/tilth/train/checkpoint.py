"""Checkpoints: one folder a step, tensors as safetensors and everything else as JSON, checksummed, never unpickled."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tilth.recipe.console import say
from tilth.recipe.errors import BadInput, RunFailed
from tilth.recipe.files import read_json, sha256_file, writing_folder

FORMAT = 1
FILES = ("tensors.safetensors", "state.json")


def encode(value: Any, tensors: dict[str, Tensor], seen: dict[Any, str], path: str = "") -> Any:
    """Plain JSON for `value`; tensors move to `tensors` under their path, the same storage only once (tied weights)."""
    if isinstance(value, Tensor):
        alias = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else path
        name = seen.setdefault(alias, path)
        if name == path:
            while name in tensors:  # keys 1 and "1", or "a/b" and "a" then "b", lead to the same path
                name += "'"
            seen[alias] = name
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, dict):
        odd = [key for key in value if not (key is None or isinstance(key, bool | int | float | str))]
        if odd:
            raise TypeError(f"{path}: a state may have numbers and text as keys, not {odd[0]!r}")
        items = [[key, encode(item, tensors, seen, f"{path}/{key}")] for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and not any(key.startswith("$") for key in value):
            return dict(items)
        return {"$items": items}
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, seen, f"{path}/{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a state may hold tensors, numbers, text, lists, tuples and dicts, not {type(value)}")


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(decode(item, tensors) for item in value["$tuple"])
    if "$items" in value:
        return {key: decode(item, tensors) for key, item in value["$items"]}
    return {key: decode(item, tensors) for key, item in value.items()}


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as a folder that appears whole; RunFailed (a full disk) leaves what was there before."""
    with writing_folder(folder) as beside:
        tensors: dict[str, Tensor] = {}
        tree = encode(state, tensors, {})
        try:
            save_file(tensors, beside / "tensors.safetensors")
        except Exception as error:  # safetensors wraps a full disk in its own error type; it is re-raised as ours
            raise RunFailed(f"Could not write the checkpoint {folder}: {error}. Earlier checkpoints are kept; free "
                            f"some space and run the same command again.") from error
        (beside / "state.json").write_text(json.dumps(tree))
        sums = {name: sha256_file(beside / name) for name in FILES}
        (beside / "checksums.json").write_text(json.dumps({"format": FORMAT, "sha256": sums}))


def load_state(folder: Path) -> dict[str, Any]:
    """The state saved in `folder`; BadInput names the file that is missing, cut short or edited."""
    sums = read_json(folder / "checksums.json")
    known = sums.get("sha256") if isinstance(sums, dict) else None
    if not isinstance(known, dict) or not set(FILES) <= set(known):
        raise BadInput(f"The checkpoint file {folder / 'checksums.json'} was edited (it does not name every file).")
    if sums.get("format") != FORMAT:
        raise BadInput(f"The checkpoint {folder} has format {sums.get('format')}; this Tilth reads format {FORMAT}.")
    for name in FILES:
        expected = known[name]
        if not (folder / name).exists():
            raise BadInput(f"The checkpoint {folder} has lost its file {name}.")
        if sha256_file(folder / name) != expected:
            raise BadInput(f"The checkpoint file {folder / name} was cut short or edited (its checksum differs).")
    return decode(read_json(folder / "state.json"), load_file(folder / "tensors.safetensors"))


class Checkpoints:
    """The checkpoints of a stage: `step-XXXXXXXX` folders, the last `keep` of them and each at a multiple of
    `keep_every`."""

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int = 2, keep_every: int | None = None):
        self.folder, self.identity, self.keep, self.keep_every = folder, identity, keep, keep_every

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = [re.fullmatch(r"step-(\d{8})", path.name) for path in self.folder.glob("step-*")]
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        save_state(self.path(step), {"identity": self.identity, **state})
        for old in self.steps()[:-self.keep]:
            if not self.keep_every or old % self.keep_every:
                shutil.rmtree(self.path(old))
        return self.path(step)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is whole; damaged ones are named and passed over; None if there never was one."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = load_state(self.path(step))
            except BadInput as error:
                say(f"{error} Using the checkpoint before it.")
                aside = self.path(step).with_name(f"damaged-{step:08d}")
                shutil.rmtree(aside, ignore_errors=True)
                shutil.move(self.path(step), aside)
                continue
            self._check_identity(state.pop("identity"), self.path(step))
            return state
        if steps:
            raise RunFailed(f"All checkpoints in {self.folder} are damaged (moved to damaged-*). To start again from "
                            f"step 0, run the same command once more.")
        return None

    def _check_identity(self, saved: dict[str, Any], path: Path) -> None:
        keys = sorted({*saved, *self.identity})
        changed = [key for key in keys if saved.get(key) != self.identity.get(key)]
        if changed:
            raise BadInput(f"The checkpoint {path} belongs to another recipe: {', '.join(changed)} differ. Put the "
                           f"recipe back, or start a new run (--new, or another run folder).")

