"""Reading what users give as tasks: YAML or JSON settings, rows in JSON lines (plain, gzip or zstandard)."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import yaml

from tilth.recipe import BadInput

DATA = "TILTH_DATA"
MAX_BYTES = 1 << 30
COMPRESSIONS = {".zst": "zstd", ".gz": "gzip"}


def read_rows(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; BadInput naming file and line where one cannot be read."""
    rows = []
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}, is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {number}, is not an object with fields but {str(row)[:60]!r}.")
        rows.append(row)
    return rows


def _content(path: str) -> bytes:
    """All of the file, unpacked; at most MAX_BYTES, so that a small file cannot fill the memory."""
    compression = COMPRESSIONS.get(Path(path).suffix)
    try:
        with fsspec.open(path, "rb") as file:
            stream = pa.PythonFile(file, mode="r")
            content = (pa.CompressedInputStream(stream, compression) if compression else stream).read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"Could not read the rows in {path}: {error}.") from error
    if len(content) > MAX_BYTES:
        raise BadInput(f"{path} holds more than {MAX_BYTES >> 20} MiB; a task's rows should be far smaller.")
    return content


def read_mapping(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file (JSON is YAML)."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"Could not read the task {path}: {error}.") from error
    if not isinstance(values, dict):
        raise BadInput(f"The task {path} is not a mapping of keys to values.")
    return values


def beside(file: Path | str, path: str, folder: str | None = None) -> str:
    """`path` as seen from `folder` (that of `file` by default); addresses and absolute paths stay."""
    return path if "://" in path else str(Path(folder or Path(file).parent) / path)


def shipped_tasks() -> dict[str, Path]:
    """The task files of the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "task_files").glob("*.yaml"))}


def read_folder(task: str) -> str:
    """The folder TILTH_DATA, where the rows of shipped tasks lie; BadInput where it is not set."""
    folder = os.environ.get(DATA)
    if not folder:
        raise BadInput(f"The rows of the task {Path(task).stem} are not part of the package: set {DATA} to the folder "
                       f"that holds them, or copy {task} and change its `data`.")
    return folder
