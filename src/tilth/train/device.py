"""The device a run uses, what it is capable of, and how much memory a step takes."""

import ctypes
import os
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tilth.precision.activations import Mode, has_products, product
from tilth.precision.fp8 import quantize_tensor
from tilth.recipe.errors import BadInput

Precision = Literal["auto", "fp32", "bf16", "fp8", "coat"]


def pick_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """The device by name; local_rank: of this process among several on one machine, each with a device of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"`device` is '{name}', which torch does not know. Use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("`device` is cuda, but torch finds no CUDA device here. Use device=cpu.")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware: any recent GPU, or a CPU with AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # AVX512-BF16 alone does not count: measured at 0.55 of the fp32 rate of the same core.
        return torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(wanted: Precision, device: torch.device) -> str:
    """What `auto` means here. BadInput for fp8 on a GPU that would emulate it; on a CPU, that is the reference."""
    if wanted == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if wanted == "fp8" and device.type == "cuda" and not has_products(device):
        raise BadInput("`precision: fp8` gains nothing on this GPU, which does not multiply FP8 matrices (compute "
                       "capability 8.9 does). Use bf16, or coat, which saves memory all the same.")
    return wanted


def mode_of(precision: str) -> Mode:
    """How the layers of a model run under a precision (see `tilth.precision.activations.use_mode`)."""
    return "fp8" if precision == "fp8" else "coat" if precision == "coat" else "plain"


def base_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of what is not FP8: under fp8 and coat bfloat16 where that is fast, else float32."""
    low = precision == "bf16" or (mode_of(precision) != "plain" and has_fast_bf16(device))
    return torch.bfloat16 if low else torch.float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    low = base_dtype(precision, device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16) if low else nullcontext()


def matmul_peak(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """Measured FLOPs a second of large square matrix products in the run's precision: the limit utilisation is
    stated against. The best of several short rounds, since other work on the machine only ever slows them."""
    size = 4096 if device.type == "cuda" else 1024
    dtype = base_dtype(precision, device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiply = partial(torch.mm, a, b)
    if mode_of(precision) != "plain" and has_products(device):
        multiply = partial(product, quantize_tensor(a), quantize_tensor(b), dtype)
    multiply()
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:  # a busy machine may not give a whole round in that time
        wait_for(device)
        start = time.perf_counter()
        for _ in range(4):
            multiply()
        wait_for(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep what one step frees for the next, in the whole process.

    By default glibc hands large blocks back and faults their pages in again: 1 to 16 % of a step's CPU-seconds at
    8192 tokens x width 256. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks of up to 1 GiB come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the top of the heap is not given back


def memory_total(device: torch.device) -> int:
    """Bytes of memory of the device (a container's limit where there is one)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read().strip()
        return min(total, int(limit)) if limit != "max" else total
    except OSError:  # no cgroup v2 here: the machine's memory is the limit
        return total


def peak_memory(device: torch.device) -> int:
    """Bytes: the most memory used so far (of the device, or resident in this process)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def begin_peak(device: torch.device) -> int:
    """Forget earlier peaks; returns the bytes in use now (of the device, or resident in this process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # where the system knows how
        file.write("5")
    return _status("VmRSS:")


def peak_since(device: torch.device) -> int:
    """Bytes: the most in use since `begin_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM:")


def _status(name: str) -> int:
    """Bytes of a line of this process's status; the peak so far where there is no such file."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
    except OSError:  # not Linux
        return peak_memory(torch.device("cpu"))


class SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass while the context is open, each storage once.

    A count, not a timing: the same on every run, so that what is chosen from it is reproducible.
    """

    def __init__(self, exclude: set[int]):
        self.bytes, self._seen = 0, set(exclude)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> "SavedBytes":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
