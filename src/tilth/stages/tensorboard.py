"""The metrics of a run for TensorBoard."""

from pathlib import Path
from typing import Any


class TensorBoardSink:
    """Metrics lines as TensorBoard scalars; the writer is opened at the first line."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: Any = None

    def __call__(self, line: dict[str, Any]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(self.folder), purge_step=line["step"])
        for key, value in {**line, **line.get("held_out", {})}.items():
            if isinstance(value, int | float) and key != "step":
                prefix = "held_out" if key in line.get("held_out", {}) else "train"
                self.writer.add_scalar(f"{prefix}/{key}", value, line["step"])
        if "held_out" in line:
            self.writer.flush()
