"""Engines: how shard functions run. Here: one after the other, or in processes of this machine."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

Task = tuple[Any, ...]


def map_shards(work: Callable[..., Any], tasks: Sequence[Task], workers: int = 1) -> Iterator[Task]:
    """Call `work(*task)` for every task and yield each task as it is done (in no promised order with `workers` > 1).

    The function writes its results to files. It must be importable by name, and a script that asks for several
    workers needs the usual `if __name__ == "__main__"`: processes are started afresh, since neither Polars nor Arrow
    survives a fork.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            work(*task)
            yield task
        return
    with _threads_each(workers), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(work, *task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _threads_each(workers: int) -> Iterator[None]:
    """Processes started in the block share the cores between their Polars threads, unless the user has said how."""
    name = "POLARS_MAX_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        del os.environ[name]
