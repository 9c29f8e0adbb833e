"""Where files are: local paths, folders and globs, or anything fsspec knows (`s3://bucket/part-*.jsonl.gz`).

Whatever a file system lists first, the order here is that of the path strings, so that "first" means the same on
every run. Hidden files and folders (a part beginning with a dot, `__pycache__`) are left out of folders and globs.
"""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from tilth.recipe import BadInput
from tilth.recipe.files import read_json, sha256_file, write_json

MAGIC = "*?["
_known: dict[str, list[Any]] = {}  # absolute path -> [size, time of change in ns, SHA-256]; see `remembering`


def is_remote(path: str) -> bool:
    return "://" in path


def file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path and the path inside it; BadInput says what to install."""
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        hint = "pip install 'tilth[s3]'" if path.startswith(("s3:", "s3a:")) else str(error)
        raise BadInput(f"Reading {path} needs a package that is not installed: {hint}.") from error
    except ValueError as error:
        raise BadInput(f"{path} names a file system that fsspec does not know: {error}.") from error


def is_folder(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    system, inside = file_system(path)
    return bool(system.isdir(inside))


def has_magic(path: str) -> bool:
    """Is this a glob? A file whose real name holds a bracket is not."""
    return any(sign in path for sign in MAGIC) and (is_remote(path) or not os.path.exists(path))


def root(path: str) -> str:
    """The folder that ids are relative to: the folder itself, the parent of a file, the fixed part of a glob."""
    if has_magic(path):
        fixed = path[:min(path.find(sign) for sign in MAGIC if sign in path)]
        return fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ".")
    if is_folder(path):
        return path.rstrip("/") or "/"
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def name(path: str) -> str:
    """A short name for what a path holds: the folder's, or the file's without its suffixes."""
    place = root(path)
    last = (os.path.abspath(place) if not is_remote(place) else place).rstrip("/").rpartition("/")[2]
    if has_magic(path) or is_folder(path):
        return last or "root"
    stem = path.rpartition("/")[2]
    return stem.lstrip(".").partition(".")[0] or stem


def relative(path: str, place: str) -> str:
    """A path below `place`, as ids use it: always forward slashes, never the machine's own folders."""
    if is_remote(path):
        # Protocols are written in more than one way (`memory://a`, `memory:///a`); inner paths in one.
        return file_system(path)[1].removeprefix(file_system(place)[1].rstrip("/") + "/")
    return os.path.relpath(path, place).replace(os.sep, "/")


def expand(path: str) -> list[str]:
    """All files of a path, folder or glob, sorted; BadInput if nothing is there."""
    found = _expand_remote(path) if is_remote(path) else _expand_local(path)
    if not found:
        where = "" if is_remote(path) or os.path.isabs(path) else f" (looked in {os.getcwd()})"
        raise BadInput(f"No file at {path}{where}. Check the path of this input; a folder or a glob must hold files.")
    return sorted(found)


def _expand_local(path: str) -> list[str]:
    if has_magic(path):
        return [found for found in glob.glob(path, recursive=True) if os.path.isfile(found)]
    if not os.path.isdir(path):
        return [path] if os.path.isfile(path) else []
    # os.walk does not follow links to folders, so a link to a parent cannot loop.
    return walk(path, is_hidden)


def walk(top: str, left_out: Callable[[str], bool]) -> list[str]:
    """All files below a local folder, without the files and folders whose name is left out."""
    found = []
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not left_out(name)]  # os.walk goes only where this list says
        found += [os.path.join(folder, file) for file in files if not left_out(file)]
    return found


def is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"


def _expand_remote(path: str) -> list[str]:
    system, inside = file_system(path)
    try:
        if has_magic(path):
            found = [item for item in system.glob(inside) if system.isfile(item)]
        else:
            found = system.find(inside) if system.exists(inside) else []
    except OSError as error:
        raise BadInput(f"Could not list {path}: {error}. Check the address and your credentials.") from error
    fixed = file_system(root(path))[1]
    return [system.unstrip_protocol(item) for item in found
            if not any(is_hidden(part) for part in item.removeprefix(fixed).split("/"))]


def open_binary(path: str) -> BinaryIO:
    """The bytes of a file as they are stored (compressed files stay compressed)."""
    try:
        if not is_remote(path):
            return open(path, "rb")  # the caller closes it
        system, inside = file_system(path)
        return cast(BinaryIO, system.open(inside, "rb"))
    except FileNotFoundError as error:
        raise BadInput(f"No file at {path}. Check the path of this input.") from error
    except PermissionError as error:
        raise BadInput(f"Not allowed to read {path}. Check its permissions or your credentials.") from error


def size(path: str) -> int:
    """Stored bytes of a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    system, inside = file_system(path)
    return int(system.size(inside) or 0)


def fingerprint(path: str) -> dict[str, Any]:
    """`{path, size, sha256}` of a file. A remote file is not read twice: its digest is that of the identity which
    its file system gives it (for S3 the ETag)."""
    if not is_remote(path):
        return {"path": path, "size": size(path), "sha256": _local_digest(path)}
    system, inside = file_system(path)
    digest = hashlib.sha256(str(system.ukey(inside)).encode()).hexdigest()
    return {"path": path, "size": size(path), "sha256": digest}


def _local_digest(path: str) -> str:
    """SHA-256 of a local file; one that `remembering` knows, of the same size and time of change, is not read again."""
    stat = os.stat(path)
    key, state = os.path.abspath(path), [stat.st_size, stat.st_mtime_ns]
    if _known.get(key, [])[:2] != state:
        _known[key] = [*state, sha256_file(path)]
    return str(_known[key][2])


@contextmanager
def remembering(file: Path) -> Iterator[None]:
    """Within the block, digests of local files are taken from `file` where size and time of change are as they were,
    and kept there: a run that is resumed does not read a whole corpus only to see that it is unchanged."""
    before = read_json(file) if file.exists() else {}
    _known.clear()
    _known.update(before)
    try:
        yield
    finally:
        if _known != before:
            write_json(file, _known)
        _known.clear()
