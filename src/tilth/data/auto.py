"""The input that looks at what it finds: JSON lines, Parquet, web archives, text files, or a saved dataset."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow as pa

from tilth.data import dataset, jsonl, locations, text_files, warc
from tilth.data.dataset import DatasetInput
from tilth.data.inputs import Input
from tilth.data.jsonl import JsonlInput
from tilth.data.parquet import ParquetInput
from tilth.data.records import Quarantine
from tilth.data.text_files import FilesInput
from tilth.data.warc import WarcInput
from tilth.recipe import BadInput

READERS: dict[str, type[Input]] = {"jsonl": JsonlInput, "parquet": ParquetInput, "files": FilesInput,
                                   "warc": WarcInput}
TOKENIZED = (".npy", ".bin", ".idx")


def kind_of(path: str) -> str | None:
    """Which reader a file's name asks for; None if none does."""
    low = path.lower()
    if low.endswith((*jsonl.SUFFIXES, ".json", ".json.gz", ".json.zst")):
        return "jsonl"
    if low.endswith(".parquet"):
        return "parquet"
    if low.endswith(warc.SUFFIXES):
        return "warc"
    return "files" if low.endswith(text_files.SUFFIXES) else None


class AutoInput(Input):
    """Reads each file by its name. In a folder that holds JSON lines or Parquet, text files beside them (a README)
    are not read, and .json files (settings, mostly) never are; name `kind: files` to read those."""

    kind: str = "auto"

    def paths(self) -> list[str]:
        if self._dataset() is not None:
            return self._as(DatasetInput).paths()
        found = locations.expand(self.path)
        named = len(found) == 1 and not locations.is_folder(self.path)
        kinds = {path: kind_of(path) for path in found if named or ".json" not in path.lower().replace(".jsonl", "")}
        records = [path for path, kind in kinds.items() if kind in ("jsonl", "parquet", "warc")]
        chosen = records or [path for path, kind in kinds.items() if kind == "files"]
        if not chosen:
            raise self._nothing(found)
        return chosen

    def read(self, quarantine: Quarantine, paths: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        chosen = self.paths() if paths is None else paths
        if self._dataset() is not None:
            yield from self._as(DatasetInput).read(quarantine, chosen)
            return
        for kind, group in groupby(chosen, kind_of):
            yield from self._as(READERS[kind or "files"]).read(quarantine, list(group))

    def _dataset(self) -> str | None:
        local = not locations.is_remote(self.path)
        return self.path if self.path.startswith(dataset.HUB) or (local and dataset.is_dataset(self.path)) else None

    def _as(self, cls: type[Input]) -> Input:
        return cls(**{name: getattr(self, name) for name in Input.model_fields if name != "kind"})

    def _nothing(self, found: list[str]) -> BadInput:
        endings = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in found)
        if any(path.lower().endswith(TOKENIZED) for path in found):
            return BadInput(f"{self.path} holds token ids ({', '.join(sorted(endings))}), which are not curated: give "
                            f"them to the tokenize stage.")
        seen = ", ".join(f"{count} x {ending}" for ending, count in endings.most_common(5))
        return BadInput(f"{self.path} holds no file that a reader knows (found {seen}). Known are .jsonl, .ndjson "
                        f"(also .gz, .zst), .parquet, .warc, .wet, {', '.join(text_files.SUFFIXES)} "
                        f"and saved datasets; or set `kind`.")
