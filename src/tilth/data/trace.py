"""What was really drawn: a log the stream writes, and the reader that names the documents of some steps.

One file a stretch, `drawn-00000.npy`: a row a piece, in the order of the rows that the model saw.
"""

import base64
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilth.data.pool import Pool
from tilth.recipe import BadInput
from tilth.recipe.files import writing

if TYPE_CHECKING:
    import polars as pl

# row: global row number; unit: row of the pool; start: first token of the unit; tokens: how many.
PIECE = np.dtype([("row", "<i8"), ("unit", "<i8"), ("start", "<i8"), ("tokens", "<i8")])
NAME = re.compile(r"drawn-(\d{5,})\.npy")
FOLDER = "drawn"


class DrawnLog:
    """Writes one file a stretch to `folder`; each appears whole or not at all."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def write(self, stretch: int, first_row: int, pieces: Any, pool: Pool) -> None:
        """`pieces` as in `stream.Pieces`, rows counted from the stretch's first; `first_row`: its global number."""
        table = np.empty(len(pieces.unit), PIECE)
        table["row"], table["unit"], table["tokens"] = pieces.row + first_row, pieces.unit, pieces.length
        table["start"] = pieces.begin - pool.offsets("tokens")[pieces.unit]
        with writing(self.folder / f"drawn-{stretch:05d}.npy") as file:
            np.save(file, table)

    def cut(self, last: int) -> None:
        """Forget the stretches after `last`: the run goes on from before them."""
        for stretch, path in self.files():
            if stretch > last:
                path.unlink()

    def files(self) -> list[tuple[int, Path]]:
        """(stretch, file) in order."""
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.glob("drawn-*.npy")]
        return sorted((int(match[1]), path) for match, path in found if match)


def compress_rows(rows: np.ndarray) -> str:
    """Integers (n,) as text for JSON."""
    return base64.b64encode(zlib.compress(np.asarray(rows, "<i8").tobytes())).decode()


def decompress_rows(text: str) -> np.ndarray:
    """What `compress_rows` was given, int64 (n,)."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64)


def read_rows(folder: Path, first_row: int, last_row: int) -> np.ndarray:
    """The pieces of rows first_row..last_row-1, PIECE (n,)."""
    files = DrawnLog(folder).files()
    if not files:
        raise BadInput(f"There is no log of what was drawn at {folder}; the run did not write one.")
    parts, upto = [], 0
    for _, path in files:
        table = _load(path)
        upto = int(table["row"][-1]) + 1
        if upto > first_row and int(table["row"][0]) < last_row:
            low, high = np.searchsorted(table["row"], [first_row, last_row])
            parts.append(np.array(table[low:high]))
    if first_row >= upto:
        raise BadInput(f"Rows {first_row}:{last_row} were not drawn yet; the log {folder} ends at row {upto}.")
    return np.concatenate(parts)


def served_by_source(stage_folder: Path | str, pool: Pool, rows: int) -> list[dict[str, Any]]:
    """What the first `rows` rows of a run really held: `{source, tokens, units, documents}` for each source."""
    pieces = read_rows(Path(stage_folder) / FOLDER, 0, rows)
    source = np.asarray(pool.source)[pieces["unit"]]
    tokens = np.bincount(source, pieces["tokens"], len(pool.sources)).astype(np.int64)
    units = np.unique(pieces["unit"])
    distinct = np.bincount(np.asarray(pool.source)[units], minlength=len(pool.sources))
    records = np.unique(pool.values("record")[units], return_index=True)[1]
    documents = np.bincount(np.asarray(pool.source)[units[records]], minlength=len(pool.sources))
    return [{"source": name, "tokens": int(tokens[index]), "units": int(distinct[index]),
             "documents": int(documents[index])} for index, name in enumerate(pool.sources)]


def _load(path: Path) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} cannot be read ({error}); the log of what was drawn is damaged.") from error
    if table.dtype != PIECE or not len(table):
        raise BadInput(f"{path} is not a log of drawn units.")
    return table


def trace_steps(stage_folder: Path | str, pool: Pool, first_row: int, last_row: int) -> "pl.DataFrame":
    """Which units trained rows first_row..last_row-1 of a run (step s of b rows: s * b to (s + 1) * b).

    Columns: unit_id, record_id, source, license, start, end (characters of the record that the unit spans),
    tokens (of the unit that are in this row), row.
    """
    import polars as pl

    pieces = read_rows(Path(stage_folder) / FOLDER, first_row, last_row)
    units = pl.from_arrow(pool.table(["unit_id", "record_id", "source", "license", "start", "end"]))
    assert isinstance(units, pl.DataFrame)
    return units[pieces["unit"].tolist()].with_columns(
        pl.Series("tokens", pieces["tokens"]), pl.Series("row", pieces["row"]))
