"""What the workers of a run tell each other about their managers: small JSON, outside the training collectives."""

import json
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from tilth.train.processes import Processes


class Exchange(Protocol):
    """rank of world; everyone: what each rank gave, in their order, on every rank."""

    rank: int
    world: int
    place: int  # on this machine

    def everyone(self, value: Any) -> list[Any]: ...


class OfProcesses:
    """Over the patient CPU group of a run's processes; a run alone tells itself."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self.rank, self.world, self.place = processes.rank, processes.world, processes.local_rank

    def everyone(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        group = self._processes.quiet_group
        said = torch.from_numpy(np.frombuffer(json.dumps(value).encode(), np.uint8).copy())
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(said)]), group=group)
        padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
        padded[:len(said)] = said
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded, group=group)
        return [json.loads(part[:int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]
