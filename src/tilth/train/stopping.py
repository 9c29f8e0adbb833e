"""Stop requests: Ctrl-C, SIGTERM and SIGUSR1 ask for a clean end; a second Ctrl-C is not asked twice."""

import signal
from types import FrameType, TracebackType


class StopRequest:
    """A context in which the signals only set `asked`; the loop looks at it after every step."""

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        try:
            self._before = {number: signal.signal(number, self._ask) for number in self.signals}
        except ValueError:  # not the main thread: the embedding program owns the signals
            self._before = {}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
