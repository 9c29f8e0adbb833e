"""Where the numbers of a run go: JSON lines on disk, and any further sinks."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tilth.recipe.files import append_json_line, read_json_lines, write_bytes

Sink = Callable[[dict[str, Any]], None]


class Metrics(Protocol):
    """Takes a dict of figures after every step."""

    def write(self, line: dict[str, Any]) -> None: ...

    def cut_back(self, step: int) -> None: ...

    def close(self) -> None: ...


class NoMetrics:
    """Of a process that is not the first: the first one writes for all."""

    def write(self, line: dict[str, Any]) -> None:
        pass

    def cut_back(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class MetricsLog:
    """An append-only JSON-lines file, cut back to a checkpoint's step when a run resumes."""

    def __init__(self, path: Path, sinks: list[Sink] | None = None):
        self.path, self.sinks = path, sinks or []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 (closed by close)

    def write(self, line: dict[str, Any]) -> None:
        line = finite(line)
        append_json_line(self._file, line)
        for sink in self.sinks:
            sink(line)

    def cut_back(self, step: int) -> None:
        """Drop the lines after `step`, which the resumed run will write again."""
        self._file.close()
        kept = [line for line in read_json_lines(self.path) if line["step"] <= step]
        write_bytes(self.path, b"".join((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in kept))
        self._file = open(self.path, "ab")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()


def finite(line: dict[str, Any]) -> dict[str, Any]:
    """The line as JSON can hold it: a figure that is no finite number (of a step that was skipped, say) becomes null,
    and `not_finite` says what it was. Unchanged where all are finite."""
    lost = {key: str(value) for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**line, **dict.fromkeys(lost), "not_finite": lost} if lost else line
