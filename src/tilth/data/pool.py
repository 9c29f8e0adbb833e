"""The pool: units with declared fields, in memory-mapped files that are addressed by row.

    fields/fields.json          version, number of units, the fields, the names of the sources
    fields/NAME.bin             little endian; a fixed-shape field is (U, *shape), a ragged one (elements, *shape)
    fields/NAME.offsets.npy     ragged fields only: int64 (U + 1,), where each unit's elements begin
    units.parquet               row i is unit i: unit_id, record_id, source, license, start, end, bytes, tokens

`source` (index into the names of the sources) and `record` (which record of the pool, counted from 0) are fields of
every pool, so that training needs numpy and nothing else. Only what asks for text columns reads the Parquet file.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tilth import __version__
from tilth.recipe import BadInput
from tilth.recipe.files import read_json, write_json, writing, writing_folder

if TYPE_CHECKING:
    import pyarrow.parquet

    from tilth.data.tokenizer import Tokenizer

VERSION = 1
DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")


@dataclass(frozen=True)
class Field:
    """What a unit holds under one name: an array of `dtype`, (*shape) or, if ragged, (any, *shape).

    `limit`: integers must be below it, and not negative.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    ragged: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadInput(f"A field of dtype {self.dtype!r} cannot be stored; choose one of {', '.join(DTYPES)}.")

    @property
    def stored(self) -> np.dtype:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def elements(self) -> int:
        """Numbers in one element (ragged) or one unit (fixed)."""
        return int(np.prod(self.shape, dtype=np.int64))

    def check(self, name: str, values: np.ndarray) -> np.ndarray:
        """The values as stored; BadInput where the shape is wrong or a number does not fit. (n, *shape)."""
        values = np.asarray(values)
        if values.shape[1:] != self.shape:
            raise BadInput(f"Field `{name}` holds elements of shape {self.shape}, not {values.shape[1:]}.")
        if np.dtype(self.dtype).kind in "iu" and values.size:
            if values.dtype.kind not in "iu":
                raise BadInput(f"Field `{name}` holds integers ({self.dtype}), not {values.dtype}.")
            bounds = np.iinfo(self.dtype)
            high = bounds.max if self.limit is None else min(self.limit - 1, bounds.max)
            low = bounds.min if self.limit is None else 0
            least, most = int(values.min()), int(values.max())
            if least < low or most > high:
                wrong = least if least < low else most
                raise BadInput(f"Field `{name}` holds numbers from {low} to {high}; got {wrong}."
                               + (" Was the text tokenized with another tokenizer?" if self.limit else ""))
        return values.astype(self.stored, copy=False)


def token_field(vocab_size: int) -> Field:
    """Ids below `vocab_size`, in 16 bits where they fit, else 32."""
    return Field("uint16" if vocab_size <= 2**16 else "uint32", ragged=True, limit=vocab_size)


class PoolWriter:
    """Writes a pool batch by batch; used as a context manager, the pool appears at `folder` whole or not at all.

    `columns` of each `append` describe the units and go to units.parquet: `unit_id`, `record_id`, `source` and any
    others (the same in every batch). Units of one record must follow one another.
    """

    def __init__(self, folder: Path | str, fields: Mapping[str, Field], **facts: Any):
        """`facts` (such as vocab_size and end_of_text) are kept in fields.json."""
        for name in fields:
            if not name.isidentifier() or name in ("source", "record"):
                raise BadInput(f"A field cannot be called {name!r}; use a word (but `source` and `record` are taken).")
        self.folder, self.facts = Path(folder), facts
        self.fields = {**fields, "source": Field("int32"), "record": Field("int64")}
        self.units = 0
        self.sources: dict[str, int] = {}
        self._record = -1
        self._last_record: str | None = None
        self._lengths: dict[str, list[np.ndarray]] = {name: [] for name, field in fields.items() if field.ragged}
        self._parquet: pyarrow.parquet.ParquetWriter | None = None

    def __enter__(self) -> "PoolWriter":
        with ExitStack() as stack:
            self._beside = stack.enter_context(writing_folder(self.folder / "fields"))
            self._units_file: BinaryIO = stack.enter_context(writing(self.folder / "units.parquet"))
            self._files = {name: stack.enter_context((self._beside / f"{name}.bin").open("wb"))
                           for name in self.fields}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool | None:
        try:
            if kind is None:
                self._finish()
        except BaseException as problem:
            self._stack.__exit__(type(problem), problem, problem.__traceback__)
            raise
        return self._stack.__exit__(kind, error, trace)

    def append(self, fields: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> None:
        """Add u units. A fixed field is an array (u, *shape); a ragged one a list of u arrays, or (flat, lengths)."""
        count = len(columns["unit_id"])
        if fields.keys() != self.fields.keys() - {"source", "record"}:
            raise BadInput(f"The pool declares the fields {', '.join(self.fields)}; got {', '.join(fields)}.")
        checked = {name: self._checked(name, value, count) for name, value in fields.items()}
        checked["source"] = self.fields["source"].check("source", self._source_ids(columns["source"]))
        checked["record"] = self.fields["record"].check("record", self._record_ids(columns["record_id"]))
        for name, values in checked.items():
            self._files[name].write(values.tobytes())
        self._append_columns(columns)
        self.units += count

    def _checked(self, name: str, value: Any, count: int) -> np.ndarray:
        field = self.fields[name]
        if not field.ragged:
            values, counted = np.asarray(value), len(value)
        else:
            if isinstance(value, tuple):
                values, lengths = value
            else:
                lengths = np.array([len(one) for one in value], np.int64)
                values = np.concatenate(value) if len(value) else np.empty((0, *field.shape), field.dtype)
            lengths, counted = np.asarray(lengths, np.int64), len(lengths)
            if int(lengths.sum()) != len(values):
                raise BadInput(f"Field `{name}` has {len(values)} elements but lengths for {int(lengths.sum())}.")
            self._lengths[name].append(lengths)
        if counted != count:
            raise BadInput(f"Field `{name}` has values for {counted} units, not for {count}.")
        return field.check(name, values)

    def _source_ids(self, names: Sequence[str]) -> np.ndarray:
        return np.array([self.sources.setdefault(name, len(self.sources)) for name in names], np.int32)

    def _record_ids(self, names: Sequence[str]) -> np.ndarray:
        ids = np.empty(len(names), np.int64)
        for index, name in enumerate(names):
            if name != self._last_record:
                self._record, self._last_record = self._record + 1, name
            ids[index] = self._record
        return ids

    def _append_columns(self, columns: Mapping[str, Sequence[Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        strings = ("unit_id", "record_id", "source", "license")
        batch = pa.table({name: pa.array(values, pa.string() if name in strings else None)
                          for name, values in columns.items()})
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._units_file, batch.schema, compression="zstd")
        self._parquet.write_table(batch)

    def _finish(self) -> None:
        if self._parquet is None:
            raise BadInput(f"There is nothing to write to the pool {self.folder}: no document was left.")
        self._parquet.close()
        for file in self._files.values():
            file.close()
        for name, lengths in self._lengths.items():
            offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype("<i8")
            np.save(self._beside / f"{name}.offsets.npy", offsets)
        self._units_file.flush()
        self._check_unique(self._units_file.name)
        described = {name: {"dtype": field.dtype, "shape": list(field.shape), "ragged": field.ragged}
                     for name, field in self.fields.items()}
        write_json(self._beside / "fields.json", {
            "version": VERSION, "tilth": __version__, "units": self.units, "fields": described,
            "sources": list(self.sources), **self.facts})
        # Fields appear last and make the pool: without them, a kill between the two renames leaves no half pool.
        shutil.rmtree(self.folder / "fields", ignore_errors=True)

    def _check_unique(self, path: str) -> None:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        ids = pq.read_table(path, columns=["unit_id"])["unit_id"]
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        counts = pc.value_counts(ids)
        twice = next(one["values"] for one in counts.to_pylist() if one["counts"] > 1)
        raise BadInput(f"Two units are called {twice!r}: two records have the same id. Give each record its own id.")


def _version(facts: Any) -> Any:
    return facts.get("version") if isinstance(facts, dict) else None


class Pool:
    """A pool on disk, memory-mapped. Rows are units; `pool.get("tokens", i)` is a view of the file."""

    def __init__(self, folder: Path, facts: dict[str, Any], fields: dict[str, Field]):
        """Use `Pool.open`."""
        self.folder, self.facts, self.fields = folder, facts, fields
        self.units: int = facts["units"]
        self.sources: list[str] = facts["sources"]
        self._offsets = {name: self._open_offsets(name) for name, field in fields.items() if field.ragged}
        self._values = {name: self._open_values(name, field) for name, field in fields.items()}

    @classmethod
    def open(cls, folder: Path | str) -> "Pool":
        """Open and check; BadInput if there is none, if it is damaged, or if a newer Tilth wrote it."""
        folder = Path(folder)
        described = folder / "fields" / "fields.json"
        if not described.is_file():
            raise BadInput(f"There is no pool at {folder} (no {described}); `tilth tokenize` makes one.")
        facts = read_json(described)
        if not isinstance(facts, dict) or facts.get("version") != VERSION:
            raise BadInput(f"The pool {folder} has version {_version(facts)}; this Tilth reads version {VERSION}. "
                           f"Tokenize again, or use the Tilth that wrote it.")
        try:
            fields = {name: Field(one["dtype"], tuple(one["shape"]), one["ragged"])
                      for name, one in facts["fields"].items()}
            return cls(folder, facts, fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"The pool {folder} is damaged: {described.name} lacks something ({error!r}). Tokenize "
                           f"again.") from error

    def _damaged(self, why: str) -> BadInput:
        return BadInput(f"The pool {self.folder} is damaged: {why}. Tokenize again.")

    def _open_offsets(self, name: str) -> np.ndarray:
        path = self.folder / "fields" / f"{name}.offsets.npy"
        try:
            offsets = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(f"{path.name} cannot be read ({error})") from error
        if offsets.dtype != np.dtype("<i8") or offsets.shape != (self.units + 1,) or offsets[0] != 0 or (
                offsets[1:] < offsets[:-1]).any():
            raise self._damaged(f"{path.name} does not hold the offsets of {self.units} units")
        return offsets

    def _open_values(self, name: str, field: Field) -> np.ndarray:
        path = self.folder / "fields" / f"{name}.bin"
        count = int(self._offsets[name][-1]) if field.ragged else self.units
        wanted = count * field.elements * field.stored.itemsize
        found = path.stat().st_size if path.is_file() else -1
        if found != wanted:
            raise self._damaged(f"{path.name} " + ("is missing" if found < 0 else f"has {found} bytes, not {wanted}"))
        shape = (count, *field.shape)
        return np.memmap(path, field.stored, "r", shape=shape) if wanted else np.empty(shape, field.stored)

    def __len__(self) -> int:
        return self.units

    def get(self, name: str, row: int) -> np.ndarray:
        """The field of one unit: (*shape), or (elements, *shape) if ragged. A view; do not write to it."""
        values = self._values[name]
        if name not in self._offsets:
            return values[row]
        offsets = self._offsets[name]
        return values[offsets[row]:offsets[row + 1]]

    def values(self, name: str) -> np.ndarray:
        """The whole field: (U, *shape), or all elements (N, *shape) of all units in order if ragged."""
        return self._values[name]

    def offsets(self, name: str) -> np.ndarray:
        """Where each unit's elements begin, int64 (U + 1,)."""
        return self._offsets[name]

    def lengths(self, name: str = "tokens") -> np.ndarray:
        """Elements of each unit, int64 (U,)."""
        return np.diff(self._offsets[name])

    @property
    def source(self) -> np.ndarray:
        """Each unit's index into `sources`, int32 (U,)."""
        return self._values["source"]

    @property
    def end_of_text(self) -> int:
        return self._fact("end_of_text")

    @property
    def vocab_size(self) -> int:
        return self._fact("vocab_size")

    def _fact(self, name: str) -> int:
        if name not in self.facts:
            raise BadInput(f"The pool {self.folder} does not name its {name}; it is not a pool of text.")
        return self.facts[name]

    def column(self, name: str) -> np.ndarray:
        """A column of the units (U,): a fixed field of no shape, else from units.parquet (text as objects)."""
        if name in self.fields and not self.fields[name].ragged:
            return self._values[name]
        return self.table([name])[name].to_numpy()

    def table(self, columns: list[str] | None = None) -> Any:
        """units.parquet as a pyarrow Table, row i is unit i."""
        import pyarrow.parquet as pq

        path = self.folder / "units.parquet"
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, ValueError) as error:
            raise self._damaged(f"units.parquet cannot be read ({error})") from error
        missing = set(columns or ()) - set(table.column_names)
        if table.num_rows != self.units or missing:
            raise self._damaged(f"units.parquet has {table.num_rows} rows, not {self.units}"
                                if not missing else f"units.parquet has no column {', '.join(sorted(missing))}")
        return table

    def tokenizer(self) -> "Tokenizer":
        from tilth.data.tokenizer import Tokenizer

        return Tokenizer.load(self.folder)
