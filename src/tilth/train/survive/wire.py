"""Requests to a manager: a JSON head and, where there is one, a payload of raw bytes. Nothing is pickled.

The standard library's connections carry the messages: over a Unix socket that only its owner may open and, between
machines, over TCP with a shared key (which proves who asks; like gradients, the bytes are not encrypted).
"""

import hashlib
import json
import os
import socket
import tempfile
from multiprocessing.connection import Client as connect
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Address = dict[str, Any]  # {"host": name, "socket": path, "tcp": [host, port] or None}


class Refused(Exception):
    """The manager answered that it cannot; `kind` says why: damaged, missing, late, room, failed."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def runtime_folder() -> Path:
    """Where the sockets are: a folder of this user's, mode 0700."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"tilth-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else, or others may enter it")
    return folder


def run_key(folder: Path, token: str) -> str:
    """16 hexadecimal digits that name what belongs to one run of a stage."""
    return hashlib.sha256(f"{folder.resolve()}\0{token}".encode()).hexdigest()[:16]


def socket_path(key: str, place: int) -> Path:
    return runtime_folder() / f"{key}-{place}.sock"


def log_path(key: str, place: int) -> Path:
    """What a manager says when something goes wrong; removed when it ends as it should."""
    return socket_path(key, place).with_suffix(".log")


def send(connection: Connection, head: dict[str, Any], payload: Any = None) -> None:
    connection.send_bytes(json.dumps({**head, "payload": payload is not None}).encode())
    if payload is not None:
        connection.send_bytes(memoryview(payload).cast("B") if len(payload) else b"")


def receive(connection: Connection) -> tuple[dict[str, Any], np.ndarray | None]:
    """EOFError where the other side is gone."""
    head = json.loads(connection.recv_bytes())
    return head, np.frombuffer(connection.recv_bytes(), np.uint8) if head.pop("payload") else None


class Client:
    """One connection to a manager. OSError, EOFError: the manager is gone; Refused: it cannot do what was asked."""

    def __init__(self, address: Address, key: bytes | None = None):
        self.local = address["host"] == socket.gethostname() and os.path.exists(address["socket"])
        if self.local:
            self._connection: Connection = connect(address["socket"], "AF_UNIX")
        elif address.get("tcp"):
            self._connection = connect(tuple(address["tcp"]), "AF_INET", authkey=key)
        else:
            raise ConnectionRefusedError(f"no manager at {address['socket']}")

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        return self.fetch(what, **fields)[0]

    def fetch(self, what: str, **fields: Any) -> tuple[dict[str, Any], np.ndarray]:
        """The answer and its payload (empty where there is none)."""
        send(self._connection, {"ask": what, **fields})
        head, payload = receive(self._connection)
        if "refused" in head:
            raise Refused(head["refused"], head["text"])
        return head, np.empty(0, np.uint8) if payload is None else payload

    def tell(self, what: str, **fields: Any) -> None:
        """Without waiting for an answer, where there is none."""
        send(self._connection, {"ask": what, **fields})

    def close(self) -> None:
        self._connection.close()
