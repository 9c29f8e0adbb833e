"""What surviving costs and whether it works: `python benchmarks/survival.py [--only SECTION]`.

- overhead: a snapshot every 10 steps against none, in blocks of one run that take turns; loading from memory against
  disk.
- saves: a snapshot against synchronous torch.save with fsync and torch.distributed.checkpoint.async_save, all every
  other step: a tenth of a second shows in blocks of two steps, and drowns in blocks of ten.
- kills: random faults from a chaos run (`--chaos FOLDER`, resumable: more `--times` go on where it stopped).
- nodes: the same between machines made of network namespaces (`--nodes-chaos FOLDER`, `--nodes-times`; root).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tilth.optim import AdamW, Constant
from tilth.recipe.files import read_json, read_json_lines
from tilth.stages.building import Budget
from tilth.stages.load import load_recipe
from tilth.stages.pretrain import CheckpointConfig, PretrainStage
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Recipe
from tilth.train.survive.members import Survive
from tilth.trial.bench import Claim, run_sections, versions
from tilth.trial.chaos import Chaos

HERE = Path(__file__).parent
DISK, ASYNC = "torch.save with fsync", "torch.distributed.checkpoint.async_save"


def timed_recipe() -> Recipe:
    """The quickstart's data and model, with a snapshot every 10 steps."""
    whole = load_recipe("quickstart")
    stage = whole.stages["pretrain"]
    assert isinstance(stage, PretrainStage)
    training = PretrainStage(
        model=stage.model, length=stage.length, batch_tokens=4096, optimizer=AdamW(lr=1e-3),
        schedule=Constant(warmup=0), precision="fp32", budget=Budget(steps=100_000),
        checkpoint=CheckpointConfig(seconds=1e9), survive=Survive(snapshot_steps=10))
    return Recipe(name="timed", stages={"curate": whole.stages["curate"], "tokenize": whole.stages["tokenize"],
                                        "pretrain": training})


def measured(arguments: argparse.Namespace, block: int, rounds: int) -> dict[str, Any]:
    """`rounds` blocks of so many steps each way (`tilth.trial.survival`), `--processes` workers of one thread each."""
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name), timed_recipe()
        run_recipe(recipe.model_copy(update={"stages": {
            one: stage for one, stage in recipe.stages.items() if one != "pretrain"}}), folder)
        (folder / "timed.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                   str(arguments.processes), "-m", "tilth.trial.survival", str(folder / "timed.yaml"), str(folder),
                   str(folder / "out.json"), "--block", str(block), "--rounds", str(rounds)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return read_json(folder / "out.json")


def series(found: dict[str, Any], arm: str, what: str) -> np.ndarray:
    return np.array([block[arm][what] for block in found["blocks"]])


def interval(statistic: Any, *arrays: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a statistic of paired arrays (rounds,)."""
    picks = np.random.default_rng(0).integers(0, len(arrays[0]), (draws, len(arrays[0])))
    low, high = np.quantile([statistic(*(array[pick] for array in arrays)) for pick in picks], [0.025, 0.975])
    return float(low), float(high)


def overhead(arguments: argparse.Namespace) -> list[Claim]:
    found = measured(arguments, 10, arguments.rounds)
    about, size = setting(found), found["snapshot_bytes"]
    claims = []
    for what, name in (("cpu", "CPU-seconds of workers and managers"), ("seconds", "seconds of the clock")):
        plain, memory = (series(found, arm, what) for arm in ("plain", "memory"))
        low, high = interval(lambda a, b: float(np.median(a / b)), memory, plain)
        claims.append(Claim(f"snapshot_overhead_{what}_upper_95", high, "of a run without", "<= 1.05", None,
                            f"{name}: median ratio {np.median(memory / plain):.4f} [{low:.4f}, {high:.4f}]; {about}"))
    training = float(np.median(series(found, "memory", "training")))
    ideal = size / found["copy_bandwidth"]
    claims.append(Claim("snapshot_training_seconds_over_copy", training / ideal, "times the copy of its bytes", "> 0",
                        "one thread's copy of memory", f"the training thread gives {training * 1e3:.2f} ms to a "
                        f"snapshot; {size / 2**20:.2f} MiB at {found['copy_bandwidth'] / 1e9:.2f} GB/s are "
                        f"{ideal * 1e3:.2f} ms"))
    memory, disk = (np.array(found["loads"][name]) for name in ("memory", "disk"))
    claims.append(Claim("load_memory_over_disk", float(np.median(memory / disk)), "of the time from disk", "< 1",
                        "checkpoint", f"median {np.median(memory) * 1e3:.1f} ms against {np.median(disk) * 1e3:.1f} ms "
                        f"(page cache warm), {len(memory)} turns"))
    return claims


def saves(arguments: argparse.Namespace) -> list[Claim]:
    found = measured(arguments, 2, 4 * arguments.rounds)
    return [_cheaper(found, "disk", DISK, ">= 5"), _cheaper(found, "async_save", ASYNC, "> 1")]


def setting(found: dict[str, Any]) -> str:
    return (f"{found['processes']} workers of one thread, {found['parameters'] / 1e6:.2f} M parameters, "
            f"{len(found['blocks'])} blocks of {found['block']} steps each way, by turns; a worker copies "
            f"{found['snapshot_bytes'] / 2**20:.2f} MiB")


def _cheaper(found: dict[str, Any], arm: str, peer: str, wanted: str) -> Claim:
    """How many times less of the training's clock a snapshot takes than a save of `arm`, at equal frequency."""
    plain, memory, other = (series(found, one, "seconds") for one in ("plain", "memory", arm))

    def ratio(base: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
        return float((theirs - base).mean() / max((ours - base).mean(), 1e-6))

    extra, theirs = float((memory - plain).mean()), float((other - plain).mean())
    low, high = interval(ratio, plain, memory, other)
    return Claim(f"snapshot_cheaper_than_{arm}", ratio(plain, memory, other), "times", wanted, peer,
                 f"extra seconds of a block: {theirs:.3f} against {extra:.3f} [{low:.1f}, {high:.1f}]"
                 f"{'; ours is within the noise of none' if extra <= 0 else ''}; {setting(found)}")


def kills(arguments: argparse.Namespace) -> list[Claim]:
    return broken("kills", ">= 200", arguments.chaos, arguments.times, arguments.kill, arguments.chaos_processes, 0)


def nodes(arguments: argparse.Namespace) -> list[Claim]:
    return broken("nodes", ">= 20", arguments.nodes_chaos, arguments.nodes_times, f"{arguments.kill},network", 3, 3)


def broken(prefix: str, wanted_faults: str, folder: Path | None, times: int, kinds: str, processes: int,
           machines: int) -> list[Claim]:
    """What a chaos run in `folder` found, after as many faults as `times` says."""
    missing = f"no chaos run was given: --{'nodes-' if machines else ''}chaos FOLDER (made by `tilth chaos`, or here)"
    names = {f"{prefix}_random_faults": ("faults", wanted_faults), f"{prefix}_wrong_resumes": ("runs", "== 0"),
             f"{prefix}_hangs": ("runs", "== 0"),
             f"{prefix}_most_steps_again_over_interval": ("of the interval", "<= 1"),
             f"{prefix}_left_behind": ("managers or regions", "== 0")}
    if folder is None:
        return [Claim(name, None, unit, wanted, None, missing) for name, (unit, wanted) in names.items()]
    if times:
        text = folder / "text"  # a copy: an edited file would be another text in the middle of it all
        if not text.exists():
            shutil.copytree(HERE.parent / "docs", text)
        Chaos(str(HERE / "survival_chaos.yaml"), [f"curate.inputs.0.path={text}"], kinds.split(","), processes, folder,
              nodes=machines).run(times)
    result = read_json(folder / "result.json")
    lines = read_json_lines(folder / "kills.jsonl")
    again = [line["recovered"]["steps_again"] for line in lines
             if line.get("recovered") and line["recovered"]["path"] in ("memory", "parity")]
    about = ", ".join(f"{one['times']} {name}" for name, one in result["by_fault"].items())
    values = (result["faults"], len(result["unequal"]), result["hangs"],
              max(again, default=0) / result["snapshot_steps"], result["left_behind"])
    where = f" on {machines} machines of network namespaces" if machines else ""
    return [Claim(name, float(value), unit, wanted, None, f"{about}; {result['rounds']} runs of {result['processes']} "
                  f"workers{where}, each equal to an undisturbed one in weights, moments and losses, or counted as "
                  f"wrong")
            for (name, (unit, wanted)), value in zip(names.items(), values, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=16, help="blocks of each way of saving")
    parser.add_argument("--chaos", type=Path, help="folder of a chaos run")
    parser.add_argument("--times", type=int, default=0, help="with --chaos: go on to this number of faults")
    parser.add_argument("--kill", default="worker,node,nodes,all,hang,storage")
    parser.add_argument("--chaos-processes", type=int, default=3)
    parser.add_argument("--nodes-chaos", type=Path, help="folder of a chaos run on nodes")
    parser.add_argument("--nodes-times", type=int, default=0)
    sections = {"overhead": overhead, "saves": saves, "kills": kills, "nodes": nodes}
    return run_sections("survival", sections, parser, versions, HERE)


if __name__ == "__main__":
    raise SystemExit(main())
