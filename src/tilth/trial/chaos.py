"""A chaos run: train under torchrun, break things at random moments, and prove that nothing came out differently.

    CHAOS/chaos.json             what was asked for; another question needs a folder of its own
    CHAOS/undisturbed/           the run that nobody disturbs
    CHAOS/round-0001/            a run that is disturbed, again and again, until it ends; removed if it came out equal
    CHAOS/kills.jsonl            a line a fault, and one a round: equal or not, and what was left behind
    CHAOS/result.json            all of it, summed up

The same command goes on where it stopped; more `times` run more rounds.
"""

import json
import math
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tilth.recipe.console import say
from tilth.recipe.errors import BadInput, RunFailed
from tilth.recipe.files import append_json_line, locked, read_json, read_json_lines, write_bytes, write_json
from tilth.stages.commands import up_to
from tilth.stages.load import load_recipe
from tilth.stages.stage import Recipe
from tilth.train.survive import manager, wire
from tilth.train.survive.account import LOG
from tilth.train.survive.members import MARK, Survive
from tilth.trial import agents
from tilth.trial.agents import Agents
from tilth.trial.chaos_result import by_fault, differs, remade, table
from tilth.trial.faults import KINDS, Target, faults, moments, small_file_system, worker
from tilth.trial.faults import left as left_by
from tilth.trial.namespaces import Nodes, possible
from tilth.trial.trial import only, with_stage

DISK, MEMORY = 256, 64  # MiB of the small file systems of a round
AGAIN = 0.15  # of the faults are followed by another, in the middle of the recovery
PATIENCE = 240.0  # seconds without a step after a fault: then the run hangs


class Chaos:
    """name, changes: the recipe, which must have one pretrain stage; kinds: of faults, see `tilth.trial.faults`;
    shard: spread the state over the processes; nodes: so many machines, each with its part of the processes, made of
    network namespaces (see `tilth.trial.namespaces`); 0: groups of processes of this machine stand for machines."""

    def __init__(self, name: str, changes: Sequence[str], kinds: Sequence[str], processes: int, folder: Path,
                 seed: int = 0, shard: bool = False, nodes: int = 0):
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise BadInput(f"--kill knows {', '.join(KINDS)}, not '{', '.join(unknown)}'.")
        self.kinds, self.processes, self.folder, self.seed = list(kinds), processes, folder, seed
        self.shard, self.nodes = shard, nodes
        if nodes and (nodes < 2 or processes % nodes):
            raise BadInput(f"{processes} processes cannot be spread evenly over {nodes} nodes (two or more).")
        if nodes and not possible():
            raise BadInput("--nodes makes machines of network namespaces, which takes Linux, root and iproute2. "
                           "Without it groups of processes stand for machines.")
        if "network" in kinds and not nodes:
            raise BadInput("A network can only fail between nodes: give --nodes too, or leave `network` out of --kill.")
        self.recipe = with_survival(up_to(load_recipe(name, changes), "pretrain"))
        self.stage = only(self.recipe, "pretrain")
        self.kills = folder / "kills.jsonl"

    def run(self, times: int) -> dict[str, Any]:
        """Rounds until `times` faults have been injected in rounds that ended; the result as result.json holds it."""
        busy = BadInput(f"Another tilth process is working in {self.folder}. Wait for it, or choose another --folder.")
        with locked(self.folder / ".lock", lambda: busy):
            self.prepare()
            while (done := len(self._faults())) < times:
                number = 1 + max((line["round"] for line in self._lines()), default=0)
                say(f"chaos: round {number}, {done} of {times} faults so far")
                Round(self, number).run(times - done)
            result = self._result()
            write_json(self.folder / "result.json", result)
        say(table(result))
        return result

    def prepare(self) -> None:
        """The run that nobody disturbs, if it was not made yet."""
        self._check_same()
        self._undisturbed()

    def _check_same(self) -> None:
        asked = {"recipe": self.recipe.model_dump(mode="json"), "processes": self.processes, "shard": self.shard,
                 **({"nodes": self.nodes} if self.nodes else {})}
        path = self.folder / "chaos.json"
        if path.exists() and read_json(path) != json.loads(json.dumps(asked)):
            raise BadInput(f"{self.folder} holds a chaos run of another recipe or number of processes. Choose another "
                           f"--folder.")
        write_json(path, asked)
        write_bytes(self.folder / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(mode="json")).encode())
        ended = {line["round"] for line in self._lines() if "equal" in line}
        kept = [line for line in self._lines() if line["round"] in ended]  # of a round that was cut off: drop all
        write_bytes(self.kills, b"".join(json.dumps(line).encode() + b"\n" for line in kept))

    def _lines(self) -> list[dict[str, Any]]:
        return read_json_lines(self.kills)

    def _faults(self) -> list[dict[str, Any]]:
        return [line for line in self._lines() if "fault" in line]

    def _undisturbed(self) -> None:
        folder = self.folder / "undisturbed"
        if not (folder / self.stage / "model").exists():
            say("chaos: the run that nobody disturbs")
            if agents.here(self.command(folder), self.processes, 0, folder.with_suffix(".log")).wait(math.inf):
                raise RunFailed(f"The run that nobody disturbs failed; see {folder.with_suffix('.log')}.")

    def command(self, folder: Path) -> list[str]:
        """What torchrun starts, for the run in `folder`."""
        return ["-m", "tilth", "pretrain", str(self.folder / "recipe.yaml"), "--folder", str(folder), "--device", "cpu",
                *(["--shard"] if self.shard else [])]

    def _result(self) -> dict[str, Any]:
        lines = self._lines()
        rounds = [line for line in lines if "equal" in line]
        return {"recipe": self.recipe.name, "processes": self.processes, "nodes": self.nodes,
                "faults": len(self._faults()),
                "rounds": len(rounds), "unequal": [line for line in rounds if not line["equal"]],
                "hangs": sum(line["hung"] for line in rounds), "left_behind": sum(line["left"] for line in rounds),
                "snapshot_steps": self.recipe.stages[self.stage].survive.snapshot_steps,  # type: ignore[attr-defined]
                "by_fault": by_fault(lines)}


class Round:
    """One disturbed run, from its first step to its end."""

    def __init__(self, chaos: Chaos, number: int):
        self.chaos, self.number = chaos, number
        self.folder = chaos.folder / f"round-{number:04d}"
        self.stage = self.folder / chaos.stage
        self.chance = random.Random(f"{chaos.seed} {number}")
        self.keys: set[str] = set()  # of the managers that the run has had

    def run(self, most: int) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        memory = self.folder.with_suffix(".memory")
        with small_file_system(self.folder, DISK) as disk, small_file_system(memory, MEMORY) as small:
            for name in self.chaos.recipe.stages:
                if name != self.chaos.stage:
                    shutil.copytree(self.chaos.folder / "undisturbed" / name, self.folder / name)
            log, command = self.folder.with_suffix(".log"), self.chaos.command(self.folder)
            if self.chaos.nodes:
                with Nodes(self.chaos.nodes) as nodes:
                    equal = self._disturb(agents.on_nodes(command, self.chaos.processes, nodes, log), most, disk, False)
            else:
                if small:
                    os.environ["TILTH_SHARED_MEMORY"] = str(memory)
                try:
                    equal = self._disturb(agents.here(command, self.chaos.processes, agents.RESTARTS, log), most, disk,
                                          small)
                finally:
                    os.environ.pop("TILTH_SHARED_MEMORY", None)
            if not equal:
                shutil.copytree(self.folder, self.folder.with_suffix(".unequal"), dirs_exist_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)

    def _disturb(self, process: Agents, most: int, disk: bool, memory: bool) -> bool:
        hung, self.process = False, process
        try:
            for _ in range(most):
                if not self._fault(process, disk, memory):
                    break
            code = process.wait(PATIENCE)
        except (subprocess.TimeoutExpired, Hung):
            hung = True
        finally:
            process.end()
        left = self._left()
        if process.nodes is None:  # nodes take everything with them
            for one in left:
                manager.clean(one)
        before = [name for name in self.chaos.recipe.stages if name != self.chaos.stage]
        if (name := remade(self.chaos.folder / "undisturbed", self.folder, before)) is not None:
            raise BadInput(f"What the stage '{name}' reads changed while {self.chaos.folder} was at work, so that its "
                           f"runs cannot be compared. Give chaos inputs that nobody edits, and another --folder.")
        difference = "hung" if hung else f"exit code {code}" if code else (
            differs(self.chaos.folder / "undisturbed" / self.chaos.stage, self.stage))
        self._write({"round": self.number, "equal": difference is None, "difference": difference, "hung": hung,
                     "left": 0 if hung else len(left)})
        if difference is None:
            self.folder.with_suffix(".log").unlink()
        return difference is None

    def _fault(self, process: Agents, disk: bool, memory: bool) -> bool:
        """Wait for training to move on, break something, wait until it has moved on again; whether it did."""
        target = self._target(disk, memory)
        at = self._wait_for_steps(process, self._step() + self.chance.randrange(2, 40))
        if target is None or at is None:
            target = self._target(disk, memory)
        if target is None or at is None or not target.members() or process.poll() is not None:
            return False
        kind = self.chance.choice(self.chaos.kinds)
        do = self.chance.choice(faults([kind], target)[kind])
        ways = moments(target, step_seconds=0.1)
        moment = self.chance.choice(["step", "step", "snapshot", "checkpoint"])
        ways[moment]()
        before, start, log = self._step(), time.monotonic(), len(read_json_lines(self.stage / LOG))
        try:
            what = do(target)
        except (IndexError, ValueError):  # it ended, or was just restarting
            return process.poll() is None
        again = kind in ("worker", "node") and self.chance.random() < AGAIN and self._again(target, process)
        try:
            recovered = self._recovered(process, log)
        finally:
            target.free()
        self._write({"round": self.number, "fault": do.__name__, "kind": kind, "what": what, "moment": moment,
                     "at_step": before, "in_recovery": again, "seconds": time.monotonic() - start,
                     "recovered": recovered})
        return process.poll() is None

    def _target(self, disk: bool, memory: bool) -> Target | None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with suppress(BadInput, KeyError):
                token = read_json(self.stage / MARK)["token"]
                self.keys.add(wire.run_key(self.stage, token))
                return Target(self.stage, wire.run_key(self.stage, token), self.chance, disk, memory,
                              agents=self.process)
            if (self.stage / "model").exists():
                return None
            time.sleep(0.05)
        return None

    def _again(self, target: Target, process: Agents) -> bool:
        """Kill another worker as soon as the restarted ones have looked for their managers."""
        old = {one.worker for one in target.members()}
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            fresh = [one for one in target.members() if one.worker not in old]
            if fresh:
                time.sleep(self.chance.uniform(0, 0.3))
                with suppress(IndexError):
                    worker(target)
                    return True
            time.sleep(0.01)
        return False

    def _step(self) -> int:
        lines = read_json_lines(self.stage / "metrics.jsonl") if self.stage.exists() else []
        return lines[-1]["step"] if lines else 0

    def _wait_for_steps(self, process: Agents, step: int) -> int | None:
        until = time.monotonic() + PATIENCE
        while process.poll() is None:
            if (found := self._step()) >= step:
                return found
            if time.monotonic() > until:
                raise Hung
            time.sleep(0.02)
        return None

    def _recovered(self, process: Agents, before: int) -> dict[str, Any] | None:
        """The line that the run wrote of its recovery; None where it came to its end without one."""
        until = time.monotonic() + PATIENCE
        while process.poll() is None:
            lines = read_json_lines(self.stage / LOG)
            if len(lines) > before:
                return lines[-1]
            if time.monotonic() > until:
                raise Hung
            time.sleep(0.02)
        return None

    def _left(self) -> list[manager.Leftover]:
        return [one for one in left_by(self.process) if one.key in self.keys]

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.chaos.kills, "ab") as file:
            append_json_line(file, line)


class Hung(Exception):
    """No step for longer than the patience."""


def with_survival(recipe: Recipe) -> Recipe:
    """The recipe with snapshots in memory, if its training has none yet."""
    name = only(recipe, "pretrain")
    stage: Any = recipe.stages[name]
    if stage.survive is not None:
        return recipe
    return with_stage(recipe, name, stage.model_copy(update={"survive": Survive(hang_seconds=30.0)}))


def run_chaos(name: str, changes: Sequence[str], kinds: str, times: int, processes: int, folder: Path | None,
              seed: int, shard: bool, nodes: int = 0) -> dict[str, Any]:
    """The command."""
    chaos = Chaos(name, changes, [kind.strip() for kind in kinds.split(",")], processes,
                  folder or Path("runs") / "chaos", seed, shard, nodes)
    return chaos.run(times)
