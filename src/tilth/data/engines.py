"""Engines: how shard functions run: one after the other, in processes of this machine, or on a Ray cluster."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
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


class Workers:
    """What calls a function for every one of many tasks; a context manager.

    engine: `local`, in `count` processes of this machine; `ray`, on the cluster that RAY_ADDRESS names (or one that
    is started here, of `count` processors), whose nodes must see the same files.

    Local processes start when they are first needed and serve every `map` of the block, since each must import
    libraries and compile its loops before it is of use. They are started afresh, since neither Polars nor Arrow
    survives a fork: the function must be importable by name, and a script that asks for several workers needs the
    usual `if __name__ == "__main__"`.
    """

    def __init__(self, count: int = 1, engine: Engine = "local"):
        self.count, self.engine = count, engine
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        self.threads = ExitStack()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=kind is None, cancel_futures=True)
            self.pool = None
        self.threads.close()

    def map(self, work: Callable[..., Any], tasks: Sequence[Task]) -> Iterator[Task]:
        """Call `work(*task)` for every task and yield each task as it is done (in no promised order with several
        workers). The function writes its results to files. Its first error ends the rest, and is raised as itself."""
        if self.engine == "ray":
            yield from _on_ray(work, tasks, self.count)
        elif min(self.count, len(tasks)) <= 1:
            for task in tasks:
                work(*task)
                yield task
        else:
            pool = self._started()
            waiting = {pool.submit(work, *task): task for task in tasks}
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]

    def _started(self) -> ProcessPoolExecutor:
        if self.pool is None:
            self.threads.enter_context(_threads_each(self.count))
            self.pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        return self.pool


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
