"""The figures of the training engine: compiled models of two sizes against litgpt, checkpoints, several processes.

    python benchmarks/training.py [--rounds N] [--only SECTION]

One thread a process, CPU-seconds of the process that does the work, the two sides taking turns. Sections:

- litgpt_9m, litgpt_30m: `Loop.run` with its blocks compiled against `litgpt.pretrain.setup`, its model compiled as it
  comes, from the same weights on the same rows in the same micro-batches (see `pretrain_loop.py`), each with its own
  loader.
- checkpoints: how long the training thread waits for a checkpoint that is written in the background, beside one that
  it writes itself, and as a share of the time between checkpoints at the recipe's default interval.
- processes: CPU-seconds of a step over two processes (gloo), replicated and sharded, against those of one process.
- elsewhere: what this machine cannot measure, with the reason.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pretrain_loop import (
    LITGPT,
    against,
    data,
    difference,
    litgpt_job,
    losses_of,
    prepare,
    shape_text,
    stage_of,
    whole_rows,
)

from tilth.models import TransformerConfig
from tilth.optim import AdamW
from tilth.recipe.files import read_json_lines
from tilth.trial.bench import Claim, Paired, run_sections, single_thread, versions
from tilth.trial.peers import Peer, PeerMissing, environment, installed_versions

HERE = Path(__file__).parent
SHAPES = {"9m": {"layers": 7, "width": 288}, "30m": {"layers": 8, "width": 512}}


def model_of(size: str) -> TransformerConfig:
    return TransformerConfig(**SHAPES[size], context=256, tied=False)


def against_litgpt(size: str, arguments: argparse.Namespace) -> list[Claim]:
    name, unit, wanted = f"compiled_vs_litgpt_{size}", "ratio of tokens per CPU-second", ">= 1.1"
    try:
        python = environment("litgpt", LITGPT, arguments.environments)
    except PeerMissing as missing:
        return [Claim(name, None, unit, wanted, "litgpt", str(missing))]
    warmup = 2
    stage = stage_of(model_of(size), 256, 2048, arguments.rounds + warmup, input="rows", precision="fp32",
                     optimizer=AdamW(lr=1e-3, weight_decay=0.0))
    if not (data() / "rows").exists():
        whole_rows(stage.length)
    run = prepare(stage, name, compiled=True)
    micro = run.decided["micro_rows"]
    losses: list[float] = []
    job = litgpt_job(run, arguments.rounds + warmup, micro, run.context.folder / "peer")
    with Peer(python, HERE / "peers" / "litgpt_pretrain.py", job, {}) as peer:

        def other() -> float:
            answer = peer.ask({"steps": 1})
            losses.extend(answer["losses"])
            return stage.batch_tokens / answer["cpu_seconds"]

        paired = against(run.loop(), 1, other, arguments.rounds, warmup)
    version = installed_versions(python, ["litgpt"])["litgpt"]
    return [Claim(name, paired.ratio, unit, wanted, f"litgpt {version}",
                  f"both compiled, each with its own loader, micro-batches of {micro}; untied, rows of one segment; "
                  f"{shape_text(run)}; {paired.text('tokens per CPU-second')}; losses of the first steps differ by at "
                  f"most {difference(losses_of(run), losses):.1e} nats")]


def checkpoints(arguments: argparse.Namespace) -> list[Claim]:
    stage = stage_of(model_of("9m"), 256, 1024, 1000, precision="fp32")
    run = prepare(stage, "checkpoints")
    loop = run.loop()
    loop.restore()
    waits: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * arguments.rounds + 2):
        loop.checkpoints.background = bool(turn % 2)
        loop.step()
        start = time.perf_counter()
        loop.save()
        waited = time.perf_counter() - start
        loop.step()  # what is still being written shares the machine with this step
        loop.checkpoints.wait()
        if turn > 1:
            waits[bool(turn % 2)].append(waited)
    loop.metrics.close()
    own, background = (float(np.median(waits[flag])) for flag in (False, True))
    interval = 120.0
    size = sum(path.stat().st_size for path in loop.checkpoints.path(loop.at.step - 1).glob("*")) / 2**20
    how = (f"{shape_text(run)}; {size:.0f} MiB, checksummed and fsynced: {own * 1000:.0f} ms by the training thread, "
           f"{background * 1000:.0f} ms in the background (medians of {arguments.rounds})")
    return [
        Claim("background_checkpoint_wait", background / own, "ratio of seconds waited", "< 0.5",
              "the same checkpoint written by the training thread", how),
        Claim("background_checkpoint_stall", background / (interval + background), "share of the time of training",
              "< 0.02", "the default of a checkpoint every 120 s", how)]


def processes(arguments: argparse.Namespace) -> list[Claim]:
    """CPU-seconds of a step: of two processes together over those of one. Whole runs, in turn."""
    recipe = recipe_file()
    claims = []
    for how, flags in (("replicated", []), ("sharded", ["--shard"])):
        paired = Paired()
        for _ in range(max(3, arguments.rounds // 2)):
            paired.add(step_cost(recipe, 2, flags), step_cost(recipe, 1, []))
        claims.append(Claim(
            f"two_processes_{how}", paired.ratio, "ratio of CPU-seconds a step", "<= 1.3",
            "the same recipe by one process",
            f"9M parameters, 8 x 256 positions a step, gloo over one machine's memory, one thread a process; "
            f"{paired.text('CPU-seconds a step')}"))
    return claims


def recipe_file() -> Path:
    path = data() / "two.yaml"
    model = json.dumps(model_of("9m").model_dump(exclude_unset=True))
    path.write_text(f"name: two\nbase: quickstart\nstages:\n  pretrain:\n    model: {model}\n    length: 256\n"
                    f"    batch_tokens: 2048\n    budget: {{tokens: null, steps: 12}}\n    precision: fp32\n"
                    f"    optimizer: {{kind: adamw, lr: 0.001}}\n    held_out_every: 100\n")
    return path


def step_cost(recipe: Path, count: int, flags: list[str]) -> float:
    """CPU-seconds of a step, without the first two, of a run in a folder that has the data already."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("curate", "tokenize"):
            (Path(scratch) / name).symlink_to(data() / name)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        command = [sys.executable, *launcher, "-m", "tilth", "pretrain", str(recipe), "--folder", scratch,
                   "--micro-rows", "2", *flags]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [line for line in read_json_lines(Path(scratch) / "pretrain" / "metrics.jsonl") if "loss" in line]
    return (lines[-1]["cpu_seconds"] - lines[1]["cpu_seconds"]) / (len(lines) - 2)


def elsewhere(arguments: argparse.Namespace) -> list[Claim]:
    no_gpu = "no GPU at hand: run benchmarks/gpu.py on one"
    return [
        Claim("vs_nanochat", None, "ratio of tokens per CPU-second", ">= 1.0", "nanochat's model",
              "nanochat is not installable as a package here (its name on the package index is a build that needs "
              "a Rust toolchain and the network)"),
        Claim("utilisation_1b", None, "share of the matrix-product peak", ">= 0.5", "peak of the device", no_gpu),
        Claim("vs_compiled_loop_1b", None, "ratio of tokens per second", ">= 1.0", "a plain compiled loop", no_gpu),
        Claim("data_stall_gpu", None, "share of the time of training", "< 0.01", None, no_gpu),
        Claim("background_checkpoint_stall_gpu", None, "share of the time of training", "< 0.02", None, no_gpu)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side")
    parser.add_argument("--environments", type=Path, default=None, help="folder for the peers' environments")
    single_thread()
    sections = {"litgpt_9m": lambda found: against_litgpt("9m", found),
                "litgpt_30m": lambda found: against_litgpt("30m", found),
                "checkpoints": checkpoints, "processes": processes, "elsewhere": elsewhere}
    return run_sections("training", sections, parser, versions, HERE)


if __name__ == "__main__":
    raise SystemExit(main())
