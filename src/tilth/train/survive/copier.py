"""The thread that copies a shard into shared memory while training goes on, and the fence that training waits at."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tilth.train.survive.flat import Flat, write_head
from tilth.train.survive.region import PAGE, Attached
from tilth.train.survive.wire import Client


class Copier:
    """Copies one shard at a time, in buckets; `fence` waits until the last bucket is out of the live tensors.

    before_bucket: called with the number of each bucket before it is copied (tests stop there).
    """

    def __init__(self, bucket_bytes: int, before_bucket: Callable[[int], Any] | None = None):
        self.bucket_bytes, self.before_bucket = bucket_bytes, before_bucket
        self._copied = threading.Event()  # of the newest job: each has its own, since one may still be told of when
        self._copied.set()                # the next has begun
        self.error: Exception | None = None
        self.bytes = 0
        self._slots = Attached()
        self._stream: Any = None
        self._jobs: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def submit(self, client: Callable[[], Client], flat: Flat, step: int, incarnation: int) -> None:
        """Begin to copy; the one before must have passed its fence. client: a connection for the thread that asks."""
        self._copied = threading.Event()
        ready = None
        if any(piece.source.is_cuda for piece in flat.pieces):  # untested on a GPU
            ready = torch.cuda.Event()
            ready.record()
        self._jobs.put((self._copied, client, flat, step, incarnation, ready))

    def fence(self) -> Exception | None:
        """Wait until the live tensors may change; the error, if there was one."""
        self._copied.wait()
        error, self.error = self.error, None
        return error

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._slots = Attached()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            copied: threading.Event = job[0]
            try:
                self._copy(*job)
            except Exception as error:  # told at the fence; a snapshot that failed must not end training by itself
                self.error = error
            del job  # it holds tensors
            copied.set()

    def _copy(self, copied: threading.Event, connected: Callable[[], Client], flat: Flat, step: int, incarnation: int,
              ready: Any) -> None:
        client = connected()
        opened = client.ask("open", step=step, incarnation=incarnation, size=flat.size)
        target = self._slots.get(opened["region"]).bytes[PAGE:PAGE + flat.size]
        write_head(flat, target)
        if ready is not None:
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_event(ready)
        number = 0
        for piece in flat.pieces:
            for at in range(0, len(piece.source), self.bucket_bytes):
                if self.before_bucket is not None:
                    self.before_bucket(number)
                bucket = piece.source[at:at + self.bucket_bytes]
                target[piece.at + at:piece.at + at + len(bucket)] = self._on_cpu(bucket)
                number += 1
        self.bytes += flat.size
        copied.set()
        client.ask("written", step=step, incarnation=incarnation)

    def _on_cpu(self, bucket: torch.Tensor) -> np.ndarray:
        if not bucket.is_cuda:
            return bucket.numpy()
        with torch.cuda.stream(self._stream):
            return bucket.cpu().numpy()
