"""The processes of a run: started by `torchrun` or `srun`, one a device, each with its share of every batch.

A run alone is `Processes()`: every exchange gives back what it was given, and nothing of torch.distributed is touched.
Rows go to processes by `data_rank` of `data_world`. Processes that share the positions of rows (context parallelism) or
the matrices of one model (tensor parallelism) have the same data rank and see the same rows.
"""

import atexit
import json
import os
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tilth.recipe.errors import BadInput

PATIENCE = timedelta(days=7)  # the others wait while the first process curates


class Processes:
    """This process among those of the run, and what they tell each other about numbers, objects and tensors.

    rank, world: of all processes; local_rank: on this machine; context, tensor: processes that share the positions of
    each row, and each block's matrices. A rank is (data_rank x context + context_rank) x tensor + tensor rank.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, tensor: int = 1, context: int = 1):
        if world % (tensor * context):
            raise BadInput(f"{world} processes cannot be split into groups of {tensor * context} (--tensor times "
                           f"--context); choose a divisor.")
        self.rank, self.world, self.local_rank, self.tensor, self.context = rank, world, local_rank, tensor, context
        self.data_rank, self.data_world = rank // (tensor * context), world // (tensor * context)
        self.context_rank = rank // tensor % context
        self.data_group: Any = None  # those with other rows
        self.context_group: Any = None  # those with other positions of the same rows
        self.sum_group: Any = None  # both: all whose losses and gradients add up
        self.quiet_group: Any = None  # over the CPU, and patient: for orders, not for gradients
        self.checkpoint_group: Any = None  # of its own, since checkpoints are written from another thread
        if world > 1:
            self.quiet_group = dist.new_group(timeout=PATIENCE, backend="gloo")
            self.checkpoint_group = dist.new_group(timeout=PATIENCE, backend="gloo")
            places = np.arange(world).reshape(self.data_world, context, tensor)
            self.data_group = _mine(rank, places.transpose(1, 2, 0).reshape(-1, self.data_world))
            self.context_group = _mine(rank, places.transpose(0, 2, 1).reshape(-1, context))
            self.sum_group = _mine(rank, places.transpose(2, 0, 1).reshape(tensor, -1))
            _joined.add(self)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def total(self, values: Sequence[float], everyone: bool = False) -> list[float]:
        """The sums of `values` over the shares of the batch (or over `everyone`), float64, equal on all processes."""
        if (self.world if everyone else self.world // self.tensor) == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=torch.device("cpu") if everyone else self._device())
        dist.all_reduce(numbers, group=self.quiet_group if everyone else self.sum_group)
        return numbers.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process: how all come to the same decision."""
        if self.world == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.quiet_group)
        return [bool(number) for number in numbers.tolist()]

    def tell(self, value: Any = None) -> Any:
        """What the first process says (JSON), on every process. Waits for it as long as it takes."""
        if self.world == 1:
            return value
        said = np.frombuffer(json.dumps(value).encode(), np.uint8).copy() if self.main else np.empty(0, np.uint8)
        size = torch.tensor([len(said)])
        dist.broadcast(size, 0, group=self.quiet_group)
        buffer = torch.from_numpy(said) if self.main else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self.quiet_group)
        return json.loads(buffer.numpy().tobytes())

    def agree(self, units: np.ndarray) -> np.ndarray:
        """The first process's int64 array (n,), on every process."""
        if self.world == 1:
            return units
        size = torch.tensor([len(units)])
        dist.broadcast(size, 0, group=self.quiet_group)
        buffer = torch.from_numpy(np.ascontiguousarray(units, np.int64)) if self.main else (
            torch.empty(int(size), dtype=torch.int64))
        dist.broadcast(buffer, 0, group=self.quiet_group)
        return buffer.numpy()

    def over_positions(self, tensor: Tensor) -> Tensor:
        """The sum over the processes that hold other positions of the same rows."""
        if self.context > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor, group=self.context_group)
        return tensor

    def gather(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The dict of every data rank, in their order; tensors of one name may differ in their first size only."""
        if self.data_world == 1:
            return [tensors]
        gathered: list[dict[str, Tensor]] = [{} for _ in range(self.data_world)]
        sizes = torch.tensor([len(tensor) for tensor in tensors.values()], device=self._device())
        all_sizes = [torch.empty_like(sizes) for _ in range(self.data_world)]
        dist.all_gather(all_sizes, sizes, group=self.data_group)
        rows = torch.stack(all_sizes).tolist()
        for at, (name, tensor) in enumerate(tensors.items()):
            longest = max(row[at] for row in rows)
            padded = tensor.new_zeros(longest, *tensor.shape[1:])
            padded[:len(tensor)] = tensor
            parts = [torch.empty_like(padded) for _ in range(self.data_world)]
            dist.all_gather(parts, padded, group=self.data_group)
            for rank, part in enumerate(parts):
                gathered[rank][name] = part[:rows[rank][at]]
        return gathered

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def checkpoint_barrier(self) -> None:
        """The same among the threads that write a checkpoint."""
        if self.world > 1:
            dist.barrier(group=self.checkpoint_group)

    def leave(self) -> None:
        """Let go of the groups. While one is referred to its threads live on, and may still hold a tensor when the
        interpreter ends, which aborts a process that has done all its work (torch 2.13, gloo)."""
        self.data_group = self.context_group = self.sum_group = self.quiet_group = self.checkpoint_group = None

    def _device(self) -> torch.device:
        on_gpu = dist.get_backend(self.data_group) != "gloo" and torch.cuda.is_available()
        return torch.device("cuda", self.local_rank) if on_gpu else torch.device("cpu")


def _mine(rank: int, members: np.ndarray) -> Any:
    """The group of this process among groups (rows) that every process must make."""
    groups = [dist.new_group(row.tolist()) for row in members]
    return groups[int(np.flatnonzero((members == rank).any(1))[0])]


def start_processes(device: str = "auto", tensor: int = 1, context: int = 1) -> Processes:
    """Join the processes that `torchrun` (RANK, WORLD_SIZE) or `srun` (SLURM_PROCID, SLURM_NTASKS) started; alone where
    there are none."""
    environment = launched()
    if environment is None:
        return Processes(tensor=tensor, context=context)
    rank, world, local_rank = environment
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=_store(rank, world), rank=rank,
                                world_size=world)
        atexit.register(stop_processes)
    return Processes(rank, world, local_rank, tensor, context)


def _store(rank: int, world: int) -> dist.Store:
    """Where the processes of this start find each other. An agent of torchrun that shares its own store keeps it over
    restarts; without a prefix, gloo would read there the addresses of processes that are gone. Where agents do not
    share (several machines with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1) every start has a fresh store, and must not have
    the prefix: the agent of a machine that took another's place counts its restarts from 0."""
    store, *_ = next(dist.rendezvous("env://", rank, world))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return store


def launched() -> tuple[int, int, int] | None:
    """(rank, world, local rank) that a launcher put into the environment; None where this process runs alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        found = int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    elif "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1 and "MASTER_ADDR" in env:
        found = int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0))
    else:
        return None
    return found if found[1] > 1 else None


def stop_processes() -> None:
    """Leave the group, if this process joined one."""
    if dist.is_initialized():
        for one in _joined:
            one.leave()
        dist.destroy_process_group()


_joined: weakref.WeakSet[Processes] = weakref.WeakSet()
