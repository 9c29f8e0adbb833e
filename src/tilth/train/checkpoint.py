"""Checkpoints: one folder a step, tensors as safetensors and everything else as JSON, checksummed, never unpickled.

A state whose tensors are all whole is written by the first process alone. One that is spread over processes is written
by all, each its own part, by torch.distributed.checkpoint; it can be read by any number of processes.
"""

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tilth.optim.spread import empty_like, is_spread, spread_like
from tilth.recipe.console import say
from tilth.recipe.errors import BadInput, RunFailed
from tilth.recipe.files import read_json, sha256_file, write_json, writing_folder
from tilth.train.encoding import decode, encode
from tilth.train.processes import Processes

FORMAT = 1
TREE, WHOLE, SUMS, PART = "state.json", "tensors.safetensors", "checksums.json", "sums-{}.json"
Layout = dict[str, Tensor]  # of each spread part of a state, by its path, a tensor that is spread in that way


def save_state(folder: Path, state: dict[str, Any], processes: Processes | None = None) -> None:
    """Write `state` as a folder that appears whole; RunFailed (a full disk) leaves what was there before."""
    write_state(folder, *encoded(state), processes or Processes())


def encoded(state: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The JSON tree of a state, and copies of its tensors by name, which no later step changes."""
    tensors: dict[str, Tensor] = {}
    return encode(state, tensors, {}), tensors


def write_state(folder: Path, tree: Any, tensors: dict[str, Tensor], processes: Processes) -> None:
    """Write what `encoded` gave. Every process must call it if a tensor is spread; else only the first one writes."""
    if any(map(is_spread, tensors.values())):
        _write_spread(folder, tree, tensors, processes)
    elif processes.main:
        with writing_folder(folder) as beside:
            _guarded(folder, lambda: save_file(tensors, beside / WHOLE))
            _finish(beside, tree, {WHOLE: sha256_file(beside / WHOLE)})


def _write_spread(folder: Path, tree: Any, tensors: dict[str, Tensor], processes: Processes) -> None:
    """Every process writes its part into one folder, which the first renames when all are done."""
    if not processes.main:
        processes.checkpoint_barrier()  # the folder is there
        _write_part(folder.with_name(f".{folder.name}.part"), folder, tensors, processes)
        return
    with writing_folder(folder) as beside:
        processes.checkpoint_barrier()
        _write_part(beside, folder, tensors, processes)
        parts = sorted(beside.glob(PART.format("*")))
        sums = {name: value for part in parts for name, value in read_json(part).items()}
        for part in parts:
            part.unlink()
        _finish(beside, tree, sums)


def _write_part(beside: Path, folder: Path, tensors: dict[str, Tensor], processes: Processes) -> None:
    import torch.distributed.checkpoint as dcp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells of its own deprecations here
        _guarded(folder, lambda: dcp.save(
            tensors, process_group=processes.checkpoint_group,
            storage_writer=dcp.HuggingFaceStorageWriter(str(beside), save_distributed=True)))
    mine = sorted(beside.glob(f"shard-{processes.rank + 1:05d}-*"))
    for path in mine:
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
    write_json(beside / PART.format(processes.rank), {path.name: sha256_file(path) for path in mine})
    processes.checkpoint_barrier()  # all parts are written


def _guarded(folder: Path, write: Callable[[], Any]) -> None:
    try:
        write()
    except Exception as error:  # safetensors and torch wrap a full disk in types of their own; re-raised as ours
        raise RunFailed(f"Could not write the checkpoint {folder}: {error}. Earlier checkpoints are kept; free some "
                        f"space and run the same command again.") from error


def _finish(beside: Path, tree: Any, sums: dict[str, str]) -> None:
    (beside / TREE).write_text(json.dumps(tree))
    sums = {**sums, TREE: sha256_file(beside / TREE)}
    (beside / SUMS).write_text(json.dumps({"format": FORMAT, "sha256": sums}))


def verify(folder: Path) -> list[str]:
    """The files of a checkpoint; BadInput names the one that is missing, cut short or edited."""
    sums = read_json(folder / SUMS)
    known = sums.get("sha256") if isinstance(sums, dict) else None
    if not isinstance(known, dict) or TREE not in known or len(known) < 2:
        raise BadInput(f"The checkpoint file {folder / SUMS} was edited (it does not name every file).")
    if sums.get("format") != FORMAT:
        raise BadInput(f"The checkpoint {folder} has format {sums.get('format')}; this Tilth reads format {FORMAT}.")
    for name, expected in known.items():
        if not (folder / name).exists():
            raise BadInput(f"The checkpoint {folder} has lost its file {name}.")
        if sha256_file(folder / name) != expected:
            raise BadInput(f"The checkpoint file {folder / name} was cut short or edited (its checksum differs).")
    return list(known)


def load_state(folder: Path, layout: Layout | None = None) -> dict[str, Any]:
    """The state saved in `folder`, checked; tensors that `layout` knows are spread in its way, all others whole."""
    return read_state(folder, verify(folder), layout or {})


def read_state(folder: Path, files: list[str], layout: Layout) -> dict[str, Any]:
    """The state in the verified `files` of `folder`; every process must call it if any layout is given."""
    if WHOLE in files:
        tensors = {name: _placed(name, tensor, layout) for name, tensor in load_file(folder / WHOLE).items()}
        return decode(read_json(folder / TREE), tensors)
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    reader = dcp.HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        model = layout.get(path_of(name))
        tensors[name] = torch.empty(about.size, dtype=about.properties.dtype) if model is None else (
            empty_like(model, about.size, about.properties.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, storage_reader=reader, no_dist=not layout)
    return decode(read_json(folder / TREE), tensors)


def _placed(name: str, tensor: Tensor, layout: Layout) -> Tensor:
    model = layout.get(path_of(name))
    return tensor if model is None or model.shape != tensor.shape else spread_like(tensor, model)


def path_of(name: str) -> str:
    """The path by which a layout knows a tensor: of a weight its own, of a moment that of its parameter's state, also
    within a copy of the state that a judge keeps."""
    if (at := name.rfind("/learner/modules/")) >= 0:
        return name[at:]
    at = name.rfind("/optimizers/")
    return name[max(at, 0):].rpartition("/")[0] + "/"


class Checkpoints:
    """The checkpoints of a stage: `step-XXXXXXXX` folders, the last `keep` of them, each at a multiple of `keep_every`,
    and the best by the score told last (`better`), if `keep_best`.

    background: write in a thread, from copies, while training goes on; `wait` for it, or for its error.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int = 2, keep_every: int | None = None,
                 keep_best: bool = False, background: bool = False, processes: Processes | None = None):
        self.folder, self.identity, self.keep, self.keep_every = folder, identity, keep, keep_every
        self.keep_best, self.background, self.processes = keep_best, background, processes or Processes()
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = [re.fullmatch(r"step-(\d{8})", path.name) for path in self.folder.glob("step-*")]
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Every process calls it. In the background, what is on disk is the checkpoint before until `wait`."""
        self.wait()
        tree, tensors = encoded({"identity": self.identity, **state})
        if self.background:
            self._writer = threading.Thread(target=self._try, args=(step, tree, tensors), name="checkpoint")
            self._writer.start()
        else:
            self._write(step, tree, tensors)
        return self.path(step)

    def wait(self) -> None:
        """Until what is being written in the background is on disk; raises what went wrong there."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def better(self, step: int, score: float) -> bool:
        """Whether a score (lower is better) is the lowest so far and its step to be kept; asked before `save`."""
        if not self.keep_best:
            return False
        best = self._best()
        if best is not None and best["step"] < step and best["score"] <= score:
            return False
        if self.processes.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "best.json", {"step": step, "score": score})
        self.processes.barrier()
        return True

    def _best(self) -> dict[str, Any] | None:
        path = self.folder / "best.json"
        return read_json(path) if path.exists() else None

    def _try(self, step: int, tree: Any, tensors: dict[str, Tensor]) -> None:
        try:
            self._write(step, tree, tensors)
        except BaseException as error:  # raised again in the training thread, by `wait`
            self._error = error

    def _write(self, step: int, tree: Any, tensors: dict[str, Tensor]) -> None:
        write_state(self.path(step), tree, tensors, self.processes)
        if not self.processes.main:
            return
        best = self._best()
        for old in self.steps()[:-self.keep]:
            kept = self.keep_every and old % self.keep_every == 0
            if not kept and not (self.keep_best and best and old == best["step"]):
                shutil.rmtree(self.path(old))

    def newest(self, layout: Layout | None = None) -> dict[str, Any] | None:
        """The newest state that is whole; damaged ones are named and passed over; None if there never was one."""
        found = self.processes.tell(self._newest_whole() if self.processes.main else None)
        if found is None:
            return None
        if found == "damaged":
            raise RunFailed(f"All checkpoints in {self.folder} are damaged (moved to damaged-*). To start again from "
                            f"step 0, run the same command once more.")
        step, files = found
        state = read_state(self.path(step), files, layout or {})
        self._check_identity(state.pop("identity"), self.path(step))
        return state

    def _newest_whole(self) -> Any:
        """(step, files) of the newest checkpoint that is whole; "damaged" if there are others only, None without."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, verify(self.path(step))
            except BadInput as error:
                say(f"{error} Using the checkpoint before it.")
                aside = self.path(step).with_name(f"damaged-{step:08d}")
                shutil.rmtree(aside, ignore_errors=True)
                shutil.move(self.path(step), aside)
        return "damaged" if steps else None

    def _check_identity(self, saved: dict[str, Any], path: Path) -> None:
        keys = sorted({*saved, *self.identity})
        changed = [key for key in keys if saved.get(key) != self.identity.get(key)]
        if changed:
            raise BadInput(f"The checkpoint {path} belongs to another recipe: {', '.join(changed)} differ. Put the "
                           f"recipe back, or start a new run (--new, or another run folder).")

