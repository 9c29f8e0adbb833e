"""How a manager answers: each connection in a thread of its own, each question by the method `on_` and its name."""

import sys
import threading
import time
from multiprocessing.connection import Connection, Listener
from typing import Any, Protocol

import numpy as np

from tilth.train.survive import wire
from tilth.train.survive.slots import Damaged
from tilth.train.survive.wire import Refused


class Answering(Protocol):
    """contact: when somebody last asked; worker: the one beside it, whose `ended` is set when its connection ends."""

    contact: float
    worker: dict[str, Any]


def serve(manager: Answering, listener: Listener) -> None:
    """Take connections, for ever."""
    while True:
        try:
            connection = listener.accept()
        except Exception as error:  # a stranger without the key, or one who left at once: the next may come
            print(f"not let in: {error!r}", file=sys.stderr, flush=True)
            continue
        threading.Thread(target=talk, args=(manager, connection), daemon=True).start()


def talk(manager: Answering, connection: Connection) -> None:
    """Answer one connection until it ends."""
    worker: dict[str, Any] | None = None  # whose life this connection is
    try:
        while True:
            head, _ = wire.receive(connection)
            manager.contact = time.monotonic()
            what = head.pop("ask")
            said = answer(manager, what, head)
            worker = manager.worker if what == "live" else worker
            if said is not None:
                wire.send(connection, *said)
    except (OSError, EOFError):
        if worker is not None:
            worker["ended"] = worker["ended"] or time.time()


def answer(manager: Answering, what: str, fields: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None] | None:
    """(head, payload or None); None for what wants no answer."""
    try:
        found = getattr(manager, f"on_{what}")(**fields)
    except Refused as error:
        return {"refused": error.kind, "text": str(error)}, None
    except Damaged as error:
        return {"refused": "damaged", "text": str(error)}, None
    except (AttributeError, TypeError) as error:
        return {"refused": "failed", "text": f"{what}: {error}"}, None
    return found if found is None or isinstance(found, tuple) else (found, None)
