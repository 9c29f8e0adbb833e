"""Hangs become crashes: a worker that makes no step for too long writes the stacks of its threads and ends."""

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path


class Watchdog:
    """Ends this process when `beat` was not called for `seconds`, after writing where every thread stood to
    `folder/rank-R.txt`. The timer is a thread of C, which no lock of Python stops; a process that was stopped as a
    whole (SIGSTOP) is ended by its snapshot manager instead, and writes its stacks on SIGABRT."""

    def __init__(self, folder: Path, rank: int, seconds: float):
        folder.mkdir(parents=True, exist_ok=True)
        self.seconds = seconds
        self._file = open(folder / f"rank-{rank}.txt", "a")  # noqa: SIM115 (closed by stop)
        faulthandler.enable(self._file)
        self.beat()

    def beat(self) -> None:
        """Everything moves: start counting again."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        self._file.close()


def see_out(pid: int, seconds: float) -> None:
    """Wait until a process has ended, and end it if it was stopped for so many seconds; then end this one."""
    moved = time.monotonic()
    while (state := state_of(pid)) not in ("", "Z", "X"):
        moved = moved if state in "Tt" else time.monotonic()
        if time.monotonic() - moved > seconds:
            end_worker(pid)
        time.sleep(0.1)
    os._exit(0)


def state_of(pid: int) -> str:
    """The letter that Linux has for what a process does; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def end_worker(pid: int) -> None:
    """End a worker that has stopped moving. SIGABRT makes faulthandler write the stacks of its threads first; SIGCONT,
    because a stopped process takes no other signal but SIGKILL."""
    print(f"worker {pid} has not moved: ending it", file=sys.stderr, flush=True)
    for number, pause in ((signal.SIGABRT, 0.0), (signal.SIGCONT, 2.0), (signal.SIGKILL, 0.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        time.sleep(pause)
