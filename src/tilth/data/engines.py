"""Engines: how shard functions run: one after the other, in processes of this machine, or on a Ray cluster."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Literal

from tilth.recipe import BadInput

Task = tuple[Any, ...]
Engine = Literal["local", "ray"]
RAY_RETRIES = 3  # of a shard whose worker or node was lost; what a shard has written by then is written again


def engine_of(name: str) -> Engine:
    """The engine that a command line names."""
    if name not in ("local", "ray"):
        raise BadInput(f"--engine is '{name}'; use local or ray.")
    return "ray" if name == "ray" else "local"


def map_shards(work: Callable[..., Any], tasks: Sequence[Task], workers: int = 1,
               engine: Engine = "local") -> Iterator[Task]:
    """Call `work(*task)` for every task and yield each task as it is done (in no promised order with several).

    engine: `local`, in `workers` processes of this machine; `ray`, on the cluster that RAY_ADDRESS names (or one that
    is started here, of `workers` processors), whose nodes must see the same files.

    The function writes its results to files. It must be importable by name, and a script that asks for several workers
    needs the usual `if __name__ == "__main__"`: processes are started afresh, since neither Polars nor Arrow survives
    a fork.
    """
    if engine == "ray":
        yield from _on_ray(work, tasks, workers)
        return
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


def _on_ray(work: Callable[..., Any], tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """One task a shard, on one processor each. The first error ends all of them, and is raised as itself."""
    try:
        import ray
    except ImportError as error:
        raise BadInput("The engine `ray` needs the package `ray`: pip install 'tilth[ray]'.") from error
    if not tasks:
        return
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, log_to_driver=False, num_cpus=None if address else workers)
    try:
        remote = ray.remote(max_retries=RAY_RETRIES, runtime_env={"env_vars": {"POLARS_MAX_THREADS": "1"}})(work)
        waiting = {remote.remote(*task): task for task in tasks}
        while waiting:
            [done], _ = ray.wait(list(waiting), num_returns=1)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                for other in waiting:
                    ray.cancel(other, force=True)
                raise error.cause from error
            yield waiting.pop(done)
    finally:
        if ours:
            ray.shutdown()


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
