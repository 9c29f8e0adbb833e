"""Hugging Face datasets: a local folder as `datasets.save_to_disk` wrote it, or a name on the hub.

The local form is Arrow files listed by JSON, which need no extra package. A hub name is for people with a network:
`path: hub:OWNER/NAME`, read through `datasets`, whose resolved revision is part of the input's fingerprint.
"""

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from tilth.data import locations
from tilth.data.parquet import ColumnInput
from tilth.data.records import BATCH_BYTES, Quarantine
from tilth.recipe import BadInput

HUB = "hub:"
HUB_ROWS = 1000


def is_dataset(path: str) -> bool:
    """Is this a local folder that `save_to_disk` wrote?"""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))


class DatasetInput(ColumnInput):
    """`split` picks one of several splits; `config` and `revision` are for the hub."""

    kind: str = "dataset"
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    def paths(self) -> list[str]:
        """The Arrow files of the split, in the order that the dataset gives them (that is its rows' order)."""
        if self.path.startswith(HUB):
            return [self.path]
        folder = self._split_folder()
        state = _json(os.path.join(folder, "state.json"))
        files = [os.path.join(folder, os.path.basename(item["filename"])) for item in state.get("_data_files", [])]
        if not files:
            raise BadInput(f"{folder}/state.json lists no data files; write the dataset again with save_to_disk.")
        missing = [path for path in files if not os.path.isfile(path)]
        if missing:
            raise BadInput(f"{folder}/state.json lists {missing[0]}, which is not there; the dataset is incomplete.")
        return files

    def sizes(self) -> list[int]:
        return [0] if self.path.startswith(HUB) else super().sizes()

    def fingerprint(self) -> list[dict[str, Any]]:
        if not self.path.startswith(HUB):
            return super().fingerprint()
        return [{"path": f"{self.path}@{self.resolved_revision()}", "size": None, "sha256": None}]

    def read(self, quarantine: Quarantine, paths: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        for path in self.paths() if paths is None else paths:
            name = path.removeprefix(HUB) if path.startswith(HUB) else os.path.basename(path)
            row = 0
            for batch in self._hub_batches() if path.startswith(HUB) else self._arrow_batches(path):
                self.check_text(batch.schema, path)
                yield self.convert(batch, path, name, row, quarantine)
                row += len(batch)

    def resolved_revision(self) -> str:
        """The commit of the dataset that a branch or tag means now."""
        hub = _package("huggingface_hub")
        try:
            return str(hub.HfApi().dataset_info(self.path.removeprefix(HUB), revision=self.revision).sha)
        except Exception as error:  # the hub's client raises errors of several packages
            raise BadInput(f"{self.path} could not be looked up on the hub: {error}. Without a network, use a folder "
                           f"that save_to_disk wrote.") from error

    def _split_folder(self) -> str:
        listing = os.path.join(self.path, "dataset_dict.json")
        if not os.path.isfile(listing):
            if not os.path.isfile(os.path.join(self.path, "state.json")):
                raise BadInput(f"{self.path} is no folder that datasets.save_to_disk wrote (no state.json or "
                               f"dataset_dict.json). For a dataset on the hub write {HUB}OWNER/NAME.")
            return self.path
        splits = _json(listing).get("splits", [])
        chosen = self.split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
        if chosen is None or chosen not in splits:
            raise BadInput(f"{self.path} has the splits {', '.join(splits)}; set `split` of this input to one of them"
                           + (f" (not '{self.split}')." if self.split else "."))
        return os.path.join(self.path, chosen)

    def _arrow_batches(self, path: str) -> Iterator[pa.RecordBatch]:
        try:
            with pa.memory_map(path) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    step = max(1, len(batch) * BATCH_BYTES // max(batch.nbytes, BATCH_BYTES))
                    yield from (batch.slice(start, step) for start in range(0, len(batch), step))
        except pa.ArrowInvalid as error:
            raise BadInput(f"{path} is no Arrow stream, or damaged: {error}. Write the dataset again.") from error

    def _hub_batches(self) -> Iterator[pa.RecordBatch]:
        datasets = _package("datasets")
        rows = datasets.load_dataset(self.path.removeprefix(HUB), self.config, split=self.split or "train",
                                     revision=self.resolved_revision(), streaming=True)
        for table in rows.with_format("arrow").iter(batch_size=HUB_ROWS):
            yield from table.combine_chunks().to_batches()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput("Reading a dataset of the hub needs the package `datasets`: pip install 'tilth[hf]'.") from error


def _json(path: str) -> dict[str, Any]:
    with locations.open_binary(path) as file:
        try:
            value = json.load(file)
        except ValueError as error:
            raise BadInput(f"{path} is not JSON: {error}.") from error
    return value if isinstance(value, dict) else {}
