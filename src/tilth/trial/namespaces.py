"""Machines made on this one: nodes in network namespaces, each with an address, a host name, shared memory and sockets
of its own, behind a bridge. What runs in one reaches the others by network alone, and a link can be cut.

Linux, root and iproute2 are needed. Processes can be seen and ended from outside, and files are shared, as on a
cluster with a common file system.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tilth.recipe.errors import BadInput
from tilth.train.survive.region import shared_folder

LINK = "eth0"  # what a node calls its link
MOST = 200  # nodes of one bridge


class Nodes:
    """`count` nodes; a context. addresses: of the nodes, which are their host names too; outside: of the bridge, where
    processes outside listen."""

    def __init__(self, count: int):
        if not possible() or not 1 <= count <= MOST:
            raise BadInput(f"{count} nodes in network namespaces cannot be made: it takes root, iproute2 (`ip`) and "
                           f"Linux, and {MOST} are the most. Without them chaos takes groups of processes as nodes.")
        self.name = f"tilth{secrets.token_hex(2)}"
        network = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self.addresses = [f"{network}.{number + 1}" for number in range(count)]
        self.outside = f"{network}.254"
        self.runtime: list[Path] = []  # folders of the nodes' sockets, and of their shared memory
        self.shared: list[Path] = []

    def __enter__(self) -> "Nodes":
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._remove()

    def start(self, node: int, command: Sequence[str], environment: dict[str, str],
              log: Path) -> subprocess.Popen[bytes]:
        """Run a command in a node, in a session of its own, its output at the end of `log`."""
        inside = ["ip", "netns", "exec", self._space(node), "unshare", "--uts", "sh", "-c",
                  'hostname "$0" && exec "$@"', self.addresses[node], *command]
        with open(log, "ab") as file:
            return subprocess.Popen(inside, stdout=file, stderr=file, start_new_session=True, env={
                **environment, "XDG_RUNTIME_DIR": str(self.runtime[node]), "GLOO_SOCKET_IFNAME": LINK,
                "TILTH_SHARED_MEMORY": str(self.shared[node])})

    def lose(self, node: int) -> None:
        """End everything in a node and take its memory and sockets away; it can be started in again."""
        while pids := subprocess.run(["ip", "netns", "pids", self._space(node)], capture_output=True,
                                     text=True).stdout.split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.005)
        for folder in (self.runtime[node], self.shared[node]):
            for path in list(folder.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def inside(self, node: int) -> Iterator[None]:
        """In the block this process finds the node's sockets and shared memory."""
        names = {"XDG_RUNTIME_DIR": str(self.runtime[node]), "TILTH_SHARED_MEMORY": str(self.shared[node])}
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def cut(self, node: int) -> None:
        """The network of a node fails; nothing in it ends."""
        _ip("link", "set", self._link(node), "down")

    def mend(self, node: int) -> None:
        """The network of a node is there again."""
        _ip("link", "set", self._link(node), "up")

    def _make(self) -> None:
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.outside}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        for node, address in enumerate(self.addresses):
            space, link = self._space(node), self._link(node)
            _ip("netns", "add", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", LINK, "netns", space)
            _ip("link", "set", link, "master", self.name, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", LINK)
            _ip("-n", space, "link", "set", LINK, "up")
            _ip("-n", space, "link", "set", "lo", "up")
            self.runtime.append(Path(tempfile.mkdtemp(prefix=f"{space}-")))
            self.shared.append(Path(tempfile.mkdtemp(prefix=f"{space}-", dir=shared_folder())))

    def _remove(self) -> None:
        for node in range(len(self.runtime)):
            self.lose(node)
        for node in range(len(self.addresses)):
            _ip("netns", "delete", self._space(node), must=False)
            _ip("link", "delete", self._link(node), must=False)
        _ip("link", "delete", self.name, must=False)
        for folder in [*self.runtime, *self.shared]:
            shutil.rmtree(folder, ignore_errors=True)
        self.runtime, self.shared = [], []

    def _space(self, node: int) -> str:
        return f"{self.name}-{node}"

    def _link(self, node: int) -> str:
        return f"{self.name}v{node}"


def possible() -> bool:
    """Whether this user may make nodes."""
    if os.name != "posix" or os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    return subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode == 0


def _ip(*words: str, must: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if must and done.returncode:
        raise BadInput(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}. Nodes need network namespaces and veth.")
