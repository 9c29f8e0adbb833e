"""What a long command tells the person who waits: what, how much, how fast, how long still. Goes to stderr."""

import sys
import time

_quiet = False


def hush() -> None:
    """Say nothing more in this process: one of several, of which the first speaks."""
    global _quiet
    _quiet = True


def say(text: str) -> None:
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def quantity(value: float, unit: str = "") -> str:
    """1.2 k, 3.45 M, 1.2 G: three figures and a decimal prefix."""
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


class Progress:
    """One line of progress: rewritten in place on a terminal, at most every ten seconds elsewhere."""

    def __init__(self, what: str, total: float, unit: str, done: float = 0):
        self.what, self.total, self.unit, self.start_done = what, total, unit, done
        self.live = sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if _quiet or (now - self.shown < (0.2 if self.live else 10) and done < self.total):
            return
        self.shown = now
        rate = (done - self.start_done) / max(now - self.start, 1e-9)
        left = duration((self.total - done) / rate) if rate > 0 and self.total else "?"
        share = f"{100 * done / self.total:3.0f} %" if self.total else quantity(done)
        line = f"  {self.what}  {share}  {quantity(rate, self.unit)}/s  {left} left  {note}".rstrip()
        end = "\r" if self.live and done < self.total else "\n"
        print(("\x1b[2K" if self.live else "") + line, end=end, file=sys.stderr, flush=True)
