"""How the model of a learner is spread over processes, and how their gradients meet.

replicate: every process holds the whole model; gradients are summed in buckets. shard: PyTorch's FSDP2
(`fully_shard`): each process holds a part of every parameter, its gradient and its moments, gathered a block at a
time; hybrid: sharded within groups of processes, replicated between them. tensor: the matrices of each block are split
over the heads and hidden features of a group of processes that see the same rows (Shoeybi et al. 2019, arXiv
1909.08053); context: the positions of each row are divided over a group. Both go with any of the three.

A module can be spread if it has `blocks` (what is gathered at once) and `spread_methods` (the names of the methods,
beside `forward`, that its objective calls); others are replicated.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tilth.models.context import ContextGroup
from tilth.objectives.loss import Batch
from tilth.optim.spread import local
from tilth.recipe.errors import BadInput
from tilth.train.learner import Learner
from tilth.train.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BUCKET = 1 << 23  # numbers of a bucket of gradients: 32 MiB of float32

Strategy = Literal["replicate", "shard"]


@dataclass
class ParallelSettings:
    """strategy: see the module; replicas: groups that each hold one whole sharded copy (hybrid sharding; 1: one copy
    over all processes); tensor: processes that share each block's matrices; context: processes that share the positions
    of each row; remember: what blocks keep for their
    backward pass: all, only the results of matrix products, or only their inputs (the rest is computed again)."""

    strategy: Strategy = "replicate"
    replicas: int = 1
    tensor: int = 1
    context: int = 1
    remember: Literal["all", "products", "inputs"] = "all"
    compile: bool = False


def settings_of(shard: bool = False, replicas: int = 1, tensor: int = 1, context: int = 1, remember: str = "all",
                compile: bool = False) -> ParallelSettings:
    """The settings that a command line means; BadInput where they contradict each other."""
    if remember not in ("all", "products", "inputs"):
        raise BadInput(f"--remember is '{remember}'; use all, products or inputs.")
    if replicas > 1 and not shard:
        raise BadInput("--replicas says how many sharded copies there are, so it needs --shard; without it every "
                       "process holds a whole copy.")
    return ParallelSettings("shard" if shard else "replicate", replicas, tensor, context, remember,  # type: ignore
                            compile)


class Parallel:
    """Spreads the modules of `learner` by `settings` over `processes`, in place; see `accumulating` and `reduce`."""

    def __init__(self, learner: Learner, processes: Processes, settings: ParallelSettings, precision: str = "fp32",
                 device: torch.device | None = None):
        self.learner, self.processes, self.settings = learner, processes, settings
        device = device or torch.device("cpu")
        self.sharded: list[Any] = []
        self._context: ContextGroup | None = None
        self.mesh = self._mesh(device) if processes.world > 1 else None
        for module in map(_untyped, learner.modules.values()):
            if settings.remember != "all":
                _needs(module, "remember", "activation checkpointing")
                module.remember = settings.remember
            if settings.context > 1:
                _needs(module, "context_group", "context parallelism")
                module.context_group = self._context = ContextGroup(processes.context_rank, processes.context,
                                                                    processes.context_group)
            if settings.tensor > 1:
                self._split(module)
            if settings.compile:
                compile_blocks(module)
            if settings.strategy == "shard" and processes.world > 1 and hasattr(module, "blocks"):
                self._shard(module, precision)

    def _mesh(self, device: torch.device) -> "DeviceMesh":
        from torch.distributed.device_mesh import init_device_mesh
        data, replicas = self.processes.world // self.settings.tensor, self.settings.replicas
        if data % replicas:
            raise BadInput(f"{data} processes cannot hold {replicas} replicas (--replicas); choose a divisor.")
        return init_device_mesh(device.type, (replicas, data // replicas, self.settings.tensor),
                                mesh_dim_names=("replicate", "shard", "tensor"))

    def _split(self, module: Any) -> None:
        from torch.distributed.tensor.parallel import parallelize_module
        _needs(module, "tensor_plan", "tensor parallelism")
        if self.mesh is None:
            raise BadInput(f"--tensor {self.settings.tensor} needs as many processes: start them with torchrun "
                           f"--nproc-per-node.")
        for block, plan in module.tensor_plan(self.settings.tensor):
            parallelize_module(block, self.mesh["tensor"], plan)

    def _shard(self, module: Any, precision: str) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
        assert self.mesh is not None
        mesh = self.mesh["replicate", "shard"] if self.settings.replicas > 1 else self.mesh["shard"]
        low = torch.bfloat16 if precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        for part in [*module.blocks, module]:
            fully_shard(part, mesh=mesh, mp_policy=policy)
            part.set_gradient_divide_factor(1.0)  # the loop divides by the whole batch already: gradients are summed
            part.set_force_sum_reduction_for_comms(True)
        for name in module.spread_methods:
            register_fsdp_forward_method(module, name)
        self.sharded.append(module)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients meet after the last one only."""
        for module in self.sharded:
            module.set_requires_gradient_sync(last)
        yield

    def positions_of(self, batch: Batch) -> Batch:
        """The batch with the positions of each row that are this process's."""
        if self._context is None:
            return batch
        if batch["unit_index"].shape[1] % self._context.world:
            raise BadInput(f"Rows of {batch['unit_index'].shape[1]} positions cannot be divided over "
                           f"{self._context.world} processes (--context); choose another `length`.")
        return self._context.slice(batch)

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of whole (not sharded) parameters over the shares of the batch, in place."""
        if self.processes.world // self.processes.tensor == 1:
            return
        inside = {id(parameter) for module in self.sharded for parameter in module.parameters()}
        whole = [parameter for parameter in parameters if id(parameter) not in inside]
        for bucket in buckets(self._with_gradient(whole)):
            gradients = [local(parameter.grad) for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=self.processes.sum_group)
            for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _with_gradient(self, parameters: list[Tensor]) -> list[Tensor]:
        """Those that have a gradient in some process; zeros where this one has none (an expert nobody here asked)."""
        if not parameters:
            return []
        have = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        dist.all_reduce(have, dist.ReduceOp.MAX, group=self.processes.quiet_group)
        with_gradient = [parameter for parameter, some in zip(parameters, have.tolist(), strict=True) if some]
        for parameter in with_gradient:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return with_gradient


def _untyped(module: Any) -> Any:
    """What a module offers beside torch's own is found out when it is asked."""
    return module


def check_parallel(precision: str, settings: ParallelSettings) -> None:
    """BadInput for FP8 layers together with what takes layers apart or traces them."""
    for name, on in (("--tensor", settings.tensor > 1), ("--compile", settings.compile)):
        if on and precision in ("fp8", "coat"):
            raise BadInput(f"`precision: {precision}` does not go with {name} yet; leave that out, or use precision "
                           f"bf16.")


def _needs(module: Any, attribute: str, what: str) -> None:
    if not hasattr(module, attribute):
        raise BadInput(f"{type(module).__name__} does not offer {what} (it has no `{attribute}`).")


def compile_blocks(module: Any) -> None:
    """Compile each block's maps by themselves: blocks of one shape share their code, and attention keeps its own
    kernels and the shortcut of causal rows."""
    for block in getattr(module, "blocks", []):
        for part in block.compiled_parts():
            part.compile(dynamic=False)


def buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters in order, in groups of one type and at most about `BUCKET` numbers."""
    group: list[Tensor] = []
    for parameter in parameters:
        if group and (sum(one.numel() for one in group) + parameter.numel() > BUCKET
                      or parameter.dtype != group[0].dtype):
            yield group
            group = []
        group.append(parameter)
    if group:
        yield group
