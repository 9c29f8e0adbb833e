"""Files that appear whole or not at all, and logs that survive a torn last line."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tilth.recipe.errors import BadInput, RunFailed


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path | str) -> Iterator[BinaryIO]:
    """Open `path` for writing beside its place; it appears there, synced, only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        fsync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunFailed(f"Could not write {path}: {error.strerror or error}. Nothing already written was touched; "
                        f"free some space (or choose another folder) and run the same command again.") from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path | str, content: bytes) -> None:
    with writing(path) as file:
        file.write(content)


def write_json(path: Path | str, value: Any) -> None:
    """Deterministic JSON (keys as given, two spaces), whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n").encode())


def read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"Could not read {path} as JSON: {error}.") from error


@contextmanager
def writing_folder(path: Path | str) -> Iterator[Path]:
    """A folder that appears at `path` whole: filled under a hidden name beside it, then renamed over."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for file in sorted(beside.rglob("*")):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)  # removed only when the new folder is in its place
        os.replace(beside, path)
        fsync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunFailed(f"Could not write {path}: {error.strerror or error}. What was there before is kept; free some "
                        f"space (or choose another folder) and run the same command again.") from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def append_json_line(file: BinaryIO, value: Any) -> None:
    """One line, one write, so that a kill tears at most the last line."""
    file.write((json.dumps(value, ensure_ascii=False) + "\n").encode())
    file.flush()


def read_json_lines(path: Path | str) -> list[Any]:
    """All whole lines of a log; a torn last line (no newline, or not JSON) is dropped."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise BadInput(f"{path}, line {number}, is not JSON ({error}); the log was edited.") from error
    return values


def sha256_file(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, busy: Callable[[], BadInput]) -> Iterator[None]:
    """Hold an advisory lock on `path` for the block; raise `busy()` if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy() from error
        yield
