"""Named shared memory that outlives the process that made it, readable by its owner alone.

POSIX shared memory on Linux is a file system in memory, so that a region is a file there. Python's `SharedMemory` is
not used: until 3.13 its resource tracker unlinks a segment when the process that created it dies, which is the one
moment these regions exist for.
"""

import mmap
import os
import re
import zlib
from pathlib import Path

import numpy as np

from tilth.recipe.errors import BadInput

PREFIX = "tilth-"
NAME = re.compile(r"tilth-(?P<key>[0-9a-f]{16})-(?P<member>\d+)-(?P<part>[ab](?:p)?)")
PAGE = 4096


def checksum(data: np.ndarray) -> int:
    """CRC-32 of bytes: against accidents, not against anybody."""
    return zlib.crc32(data.data)


def shared_folder() -> Path:
    """Where regions live: /dev/shm, or TILTH_SHARED_MEMORY (another tmpfs)."""
    folder = Path(os.environ.get("TILTH_SHARED_MEMORY", "/dev/shm"))
    if not folder.is_dir():
        raise BadInput(f"Snapshots in memory need shared memory as a folder, and there is no {folder}. On Linux it is "
                       f"/dev/shm; name another tmpfs by TILTH_SHARED_MEMORY, or take `survive` out of the recipe.")
    return folder


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def check_room(needed: int, folder: Path | None = None) -> None:
    """BadInput, with both figures, where shared memory has less than `needed` bytes free."""
    folder = folder or shared_folder()
    free = free_bytes(folder)
    if needed > free:
        raise BadInput(f"Snapshots need {needed / 2**20:.1f} MiB of shared memory for each worker of this machine, and "
                       f"{folder} has {free / 2**20:.1f} MiB free. Enlarge it (containers: --shm-size), spread the "
                       f"state over more members, or take `survive` out of the recipe; `tilth doctor` shows what "
                       f"earlier runs left there.")


class Region:
    """`size` bytes of shared memory under `name`, mode 0600. `create` reserves every page, so that a full file system
    is an error here and never a SIGBUS in the middle of a copy."""

    def __init__(self, path: Path, handle: int, size: int):
        self.path, self.size, self.inode = path, size, os.fstat(handle).st_ino
        try:
            self._map = mmap.mmap(handle, size)
        finally:
            os.close(handle)
        self.bytes = np.frombuffer(self._map, np.uint8)

    @classmethod
    def create(cls, name: str, size: int, folder: Path | None = None) -> "Region":
        """A new region in place of any of that name; BadInput where it does not fit."""
        folder = folder or shared_folder()
        path, size = folder / name, -(-size // PAGE) * PAGE
        path.unlink(missing_ok=True)
        check_room(size, folder)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError:  # others took the room between the look and the reservation
            os.close(handle)
            path.unlink(missing_ok=True)
            check_room(size, folder)
            raise
        return cls(path, handle, size)

    @classmethod
    def attach(cls, name: str, folder: Path | None = None) -> "Region":
        """The region of that name; FileNotFoundError where there is none."""
        path = (folder or shared_folder()) / name
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return cls(path, handle, os.fstat(handle).st_size)

    def remove(self) -> None:
        """Take the name away; the memory goes when its last user closes it."""
        self.path.unlink(missing_ok=True)


class Attached:
    """Regions that others made. Each is mapped once as long as it is the same one: a new mapping would cost a page
    fault for every page of every snapshot."""

    def __init__(self) -> None:
        self._known: dict[str, Region] = {}

    def get(self, name: str) -> Region:
        """The region of that name; FileNotFoundError where there is none."""
        found = self._known.get(name)
        if found is None or (shared_folder() / name).stat().st_ino != found.inode:
            found = self._known[name] = Region.attach(name)
        return found
