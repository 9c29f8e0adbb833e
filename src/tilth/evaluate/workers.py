"""Several processes ask one model: each has the model (on a CPU in shared memory, on GPUs one copy a device).

What is spread are whole batches, planned in the process that asks, so that the numbers do not depend on how many
processes there are: bit for bit where each has as many threads. A job is a picklable `job(likelihood) -> result`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import multiprocessing, nn

Job = Callable[[Any], Any]

_own: Any = None  # in a worker process: its Likelihood


class Workers:
    """`count` processes that hold `model`; settings: what `Likelihood` is built with. Close it, or use it in `with`."""

    def __init__(self, count: int, model: nn.Module, settings: dict[str, Any]):
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        context = multiprocessing.get_context("spawn")
        numbers = context.Queue()
        for number in range(count):
            numbers.put(number)
        threads = max(1, torch.get_num_threads() // count)
        self.pool = context.Pool(count, _begin, (copy.deepcopy(model).cpu() if on_gpu else model, settings, numbers,
                                                 threads, on_gpu))

    def each(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """The results, in the order of the jobs."""
        return self.pool.imap(_do, jobs)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.terminate()
        self.pool.join()


def _begin(model: nn.Module, settings: dict[str, Any], numbers: Any, threads: int, on_gpu: bool) -> None:
    from tilth.evaluate.likelihood import Likelihood
    global _own
    torch.set_num_threads(threads)
    if on_gpu:
        model.to(f"cuda:{numbers.get() % torch.cuda.device_count()}")
    _own = Likelihood(model, **settings)


def _do(job: Job) -> Any:
    return _own.do(job)
