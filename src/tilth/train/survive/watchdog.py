"""Hangs become crashes: a worker that makes no step for too long writes the stacks of its threads and ends."""

import faulthandler
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
