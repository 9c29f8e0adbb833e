"""Other projects' tools, each in a virtual environment of its own, driven over a pipe.

A peer is a script that is run by the Python of its environment. It reads one JSON request a line from its standard
input and answers with one JSON line; what its libraries print goes to a log.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilth.recipe.console import say
from tilth.recipe.errors import RunFailed

VARIABLE = "TILTH_BENCH_ENVS"
INSTALL_SECONDS = 1800


class PeerMissing(RunFailed):
    """The peer cannot be measured here; the message says why, and becomes the reason of a null claim."""


def environments_folder(given: Path | None = None) -> Path:
    """Where environments are kept: `given`, else the variable TILTH_BENCH_ENVS, else a folder of the user's cache."""
    return Path(given or os.environ.get(VARIABLE) or Path.home() / ".cache" / "tilth" / "bench").expanduser()


def environment(name: str, requirements: Sequence[str], folder: Path | None = None) -> Path:
    """The Python of the environment `name`, made and filled by pip if it is not there with those requirements.

    requirements: `package==version` or `package`. Raises PeerMissing where it cannot be made.
    """
    home = environments_folder(folder) / name
    python = home / "bin" / "python"
    if python.exists() and not unmet(python, requirements):
        return python
    say(f"  installing {', '.join(requirements)} into {home}")
    _call([sys.executable, "-m", "venv", str(home)], name)
    _call([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements], name)
    missing = unmet(python, requirements)
    if missing:
        raise PeerMissing(f"{name}: pip ended well, but {', '.join(missing)} is not there.")
    return python


def unmet(python: Path, requirements: Sequence[str]) -> list[str]:
    """Those of `requirements` that the environment of `python` lacks."""
    installed = installed_versions(python, [one.partition("==")[0] for one in requirements])
    lacking = []
    for one in requirements:
        package, _, version = one.partition("==")
        found = installed.get(package)
        if found is None or (version and found.partition("+")[0] != version):
            lacking.append(one)
    return lacking


def installed_versions(python: Path, packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of `packages` in the environment of `python`; None where one is not installed."""
    code = ("import importlib.metadata as m, json, sys\nfound = {}\nfor name in sys.argv[1:]:\n"
            "    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: found[name] = None\n"
            "print(json.dumps(found))")
    answer = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True)
    return json.loads(answer.stdout) if answer.returncode == 0 else dict.fromkeys(packages)


def _call(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"{name} could not be installed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise PeerMissing(f"{name} could not be installed (pip needs a network or a mirror): {last}")


class Peer:
    """A running peer, a context manager: `ask(request)` sends a dict and waits for the answer."""

    def __init__(self, python: Path, script: Path, job: dict[str, Any], variables: dict[str, str] | None = None):
        self.name = script.stem
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env={**os.environ, **(variables or {})})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The peer's answer. Raises RunFailed with the end of its log if it died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunFailed(f"The peer {self.name} ended without an answer. The end of its log:\n{self._tail()}")
        return json.loads(line)

    def _tail(self) -> str:
        self._process.wait(timeout=60)
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-15:])

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                file.close()
