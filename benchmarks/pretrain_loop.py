"""The figures of the main job: the loop's speed against a bare one and against litgpt, exactness, the quickstart.

    python benchmarks/pretrain_loop.py [--rounds N] [--only SECTION] [--quickstart RUN ...]

Everything runs on one thread and is counted in CPU-seconds of the process that does it. Data: the standard library's
text, curated and tokenized as the quickstart does it. Sections:

- bare: Tilth's whole `Loop.run` (packed stream, units' sums and counts, clip, fused AdamW, metrics as JSON lines and
  TensorBoard) against a bare PyTorch loop of the same model from the same weights on the same batches, built before
  the clock starts: for each batch `model.hidden`, `token_losses` summed and divided by the number of predicted tokens,
  `backward`, `loss.item()`; then `clip_grad_norm_`, `step`, `zero_grad`. Both must show the same losses.
- litgpt: `Loop.run` against `litgpt.pretrain.setup` in an environment of its own, from the same weights on the same
  rows of one whole segment each. First each as it comes by default: litgpt compiles its model and takes 4 rows at a
  time, Tilth does not compile and finds its micro-batches itself. Then litgpt in Tilth's micro-batches; then so with
  both compiled, and with neither.
- exact: accumulation against one big batch, a resumed run against an uninterrupted one, an exported model in
  `transformers` against the source.
- quickstart: scores, time and memory of finished quickstart runs, given as `--quickstart RUN ...`.
- tests: seconds of the whole test suite; only when asked for.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tilth.data.pool import Pool
from tilth.data.stream import PackedStream
from tilth.data.tokenize import TokenizedRecord, pool_from_arrays
from tilth.models import TransformerConfig, export_llama, token_losses
from tilth.objectives import Batch
from tilth.optim import AdamW, Constant, group_parameters
from tilth.recipe.errors import RunFailed
from tilth.recipe.files import read_json, read_json_lines
from tilth.stages.building import Budget, random_batch
from tilth.stages.load import load_recipe
from tilth.stages.pretrain import CheckpointConfig, PretrainStage
from tilth.stages.pretraining import Pretraining
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Context, Hardware, Recipe
from tilth.train import Every, Loop
from tilth.train.device import autocast
from tilth.train.parallel import ParallelSettings
from tilth.trial.bench import Claim, Paired, peak_memory_gib, run_sections, versions
from tilth.trial.peers import Peer, PeerMissing, environment, installed_versions

HERE = Path(__file__).parent
SMALL = TransformerConfig(layers=2, width=128, heads=2, feed_forward=352, context=256)
SAME_LOSS = 2e-3  # nats, over the first steps: rounding, and nothing else, tells two equal computations apart
# name: whether Tilth's model is compiled, and litgpt's; rows of litgpt's micro-batches (default 4; None: Tilth's)
LITGPT_MODES = {"": (False, True, 4), "_same_micro_batches": (False, True, None), "_both_compiled": (True, True, None),
                "_not_compiled": (False, False, None)}
LITGPT = ["litgpt==0.5.13", f"torch=={torch.__version__.partition('+')[0]}"]
GIB = 2**30


@functools.cache
def data() -> Path:
    """A run folder with the quickstart's `tokenize` stage, for the life of the process."""
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    whole = load_recipe("quickstart")
    run_recipe(Recipe(name="data", stages={name: whole.stages[name] for name in ("curate", "tokenize")}),
               Path(folder.name))
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def stage_of(model: TransformerConfig, length: int, batch_tokens: int, steps: int, **changes: Any) -> PretrainStage:
    """A pretrain stage with fused AdamW at a constant rate, and no checkpoint before its end."""
    return PretrainStage(**{
        "model": model, "length": length, "batch_tokens": batch_tokens, "optimizer": AdamW(lr=1e-3),
        "schedule": Constant(warmup=0), "budget": Budget(steps=steps), "checkpoint": CheckpointConfig(seconds=1e9),
        **changes})


def quickstart_stage(steps: int, **changes: Any) -> PretrainStage:
    stage = load_recipe("quickstart").stages["pretrain"]
    assert isinstance(stage, PretrainStage) and isinstance(stage.model, TransformerConfig)
    return stage_of(**{"model": stage.model, "length": stage.length, "batch_tokens": stage.batch_tokens,
                       "steps": steps, **changes})


def prepare(stage: PretrainStage, name: str, micro_rows: int | None = None, compiled: bool = False) -> Pretraining:
    hardware = Hardware(device="cpu", micro_rows=micro_rows, parallel=ParallelSettings(compile=compiled))
    return Pretraining(stage, Context(data(), data() / name, 0, hardware))


def batches_of(run: Pretraining, steps: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step, from a stream equal to the run's."""
    stream = PackedStream(run.pool, run.stage.policy.build(run.pool, 0), run.stage.length, 0)
    for _ in range(steps):
        yield [stream.next(run.decided["micro_rows"]) for _ in range(run.stage.rows // run.decided["micro_rows"])]


def against(loop: Loop, turn: int, other: Callable[[], float], rounds: int, warmup: int) -> Paired:
    """Run the whole loop; after every `turn` steps the other side takes its turn, inside a hook. Rates are in tokens
    per CPU-second."""
    paired = Paired()
    clock = {"turn": 0, "tokens": 0, "cpu": time.process_time()}

    def switch(now: Loop) -> None:
        rate = (now.at.tokens - clock["tokens"]) / (time.process_time() - clock["cpu"])
        other_rate = other()
        if clock["turn"] >= warmup:
            paired.add(rate, other_rate)
        clock.update(turn=clock["turn"] + 1, tokens=now.at.tokens, cpu=time.process_time())

    if loop.settings.steps != turn * (rounds + warmup):
        raise ValueError(f"{loop.settings.steps} steps are not {rounds + warmup} turns of {turn}.")
    loop.hooks = [Every(turn, switch)]
    loop.run()
    loop.metrics.close()
    return paired


class BareLoop:
    """Forward, loss, backward, clip, step, over batches that are there already."""

    def __init__(self, run: Pretraining, steps: int):
        self.model = run.model.config.build()
        self.model.load_state_dict(run.model.state_dict())
        self.optimizer = run.stage.optimizer.build(group_parameters(self.model))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.batches = [(one, sum(int((batch["targets"] != -100).sum()) for batch in one))
                        for one in batches_of(run, steps)]
        self.precision, self.device, self.clip = run.precision, run.device, run.stage.clip
        self.losses: list[float] = []

    def turn(self, steps: int) -> float:
        """Train `steps` steps; returns tokens per CPU-second."""
        start, first = time.process_time(), len(self.losses)
        tokens = 0
        for batches, count in self.batches[first:first + steps]:
            loss = 0.0
            for batch in batches:
                with autocast(self.precision, self.device):
                    hidden = self.model.hidden(batch["tokens"], segments=batch["unit_index"],
                                               positions=batch["positions"])
                    mean = token_losses(hidden, self.model.output_weight, batch["targets"]).sum() / count
                mean.backward()
                loss += mean.item()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss)
            tokens += count
        return tokens / (time.process_time() - start)


def bare(arguments: argparse.Namespace) -> list[Claim]:
    claims = []
    for name, make, turn, rounds in (
            ("quickstart", quickstart_stage, 1, arguments.rounds),
            ("small", functools.partial(stage_of, SMALL, 256, 2048), 10, 2 * arguments.rounds)):
        warmup = 2
        steps = turn * (rounds + warmup)
        run = prepare(make(steps), f"bare-{name}")
        other = BareLoop(run, steps)
        paired = against(run.loop(), turn, lambda bare=other, turn=turn: bare.turn(turn), rounds, warmup)
        apart = difference(losses_of(run), other.losses)
        claims.append(Claim(
            f"loop_vs_bare_{name}", paired.ratio, "ratio of tokens per CPU-second", ">= 0.97",
            "bare PyTorch loop of the same model", f"{shape_text(run)}; {paired.text('tokens per CPU-second')}; "
            f"losses of the first steps differ by at most {apart:.1e} nats"))
    claims.append(Claim("loop_peak_memory", peak_memory_gib(), "GiB", "<= 4", None,
                        "peak resident memory of this process: Tilth's loop and the bare one with all its batches"))
    return claims


def losses_of(run: Pretraining) -> list[float]:
    return [line["loss"] for line in read_json_lines(run.context.folder / "metrics.jsonl") if "loss" in line]


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of the first five losses; RunFailed if the two sides did not compute the same thing."""
    apart = float(np.abs(np.array(ours[:5]) - np.array(theirs[:5])).max())
    if not apart < SAME_LOSS:
        raise RunFailed(f"The two sides do not train alike: losses {ours[:5]} and {theirs[:5]}. No speed is reported.")
    return apart


def shape_text(run: Pretraining) -> str:
    model = run.model.config
    return (f"{model.layers} layers, width {model.width}, {model.parameters():,} parameters, {run.stage.rows} x "
            f"{run.stage.length} positions a step in micro-batches of {run.decided['micro_rows']}, {run.precision}, "
            f"{torch.get_num_threads()} thread")


def whole_rows(length: int) -> None:
    """A pool beside `tokenize` whose units are rows of exactly `length` tokens: plain causal attention everywhere."""
    pool = Pool.open(data() / "tokenize")
    tokens = np.array(pool.values("tokens"))
    tokens = tokens[:(len(tokens) - 1) // length * length]
    tokens[-1] = pool.end_of_text
    pool_from_arrays([TokenizedRecord("all", tokens, "python-stdlib", "PSF-2.0")], data() / "rows", length,
                     pool.vocab_size, pool.end_of_text, pool.tokenizer())


def litgpt_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tilth's weights under litgpt's names: queries, keys and values in one matrix."""
    renamed = {"lm_head.weight": weights["unembedding.weight"], "transformer.ln_f.weight": weights["norm.weight"],
               "transformer.wte.weight": weights["embedding.weight"]}
    names = {"attention.out": "attn.proj", "attention_norm": "norm_1", "feed_forward_norm": "norm_2",
             "feed_forward.gate": "mlp.fc_1", "feed_forward.up": "mlp.fc_2", "feed_forward.down": "mlp.proj"}
    for layer in range(sum(name.endswith("query.weight") for name in weights)):
        block, target = f"blocks.{layer}.", f"transformer.h.{layer}."
        joined = [weights[f"{block}attention.{part}.weight"] for part in ("query", "key", "value")]
        renamed[f"{target}attn.qkv.weight"] = torch.cat(joined)
        renamed |= {f"{target}{theirs}.weight": weights[f"{block}{ours}.weight"] for ours, theirs in names.items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in renamed.items()}


def litgpt_job(run: Pretraining, steps: int, micro_rows: int, folder: Path) -> dict[str, Any]:
    """What the peer is told: the shape, the first weights, and the rows that our stream serves, in the same order."""
    model, optimizer = run.model.config, run.stage.optimizer
    batches = [batch for step in batches_of(run, steps) for batch in step]
    rows = torch.cat([torch.cat((batch["tokens"][:, :1], batch["targets"]), 1) for batch in batches])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "rows.npy", rows.numpy())
    save_file(litgpt_weights(run.model.state_dict()), folder / "weights.safetensors")
    sizes = model.sizes()
    return {"shape": {"layers": model.layers, "width": model.width, "heads": sizes.heads, "length": run.stage.length,
                      "feed_forward": sizes.feed_forward, "vocabulary": sizes.vocabulary},
            "parameters": model.parameters(), "weights": str(folder / "weights.safetensors"),
            "rows": str(folder / "rows.npy"), "batch_rows": run.stage.rows, "micro_rows": micro_rows,
            "steps": steps + 1, "lr": optimizer.lr, "weight_decay": optimizer.weight_decay,
            "betas": list(optimizer.betas), "clip": run.stage.clip}


def litgpt(arguments: argparse.Namespace) -> list[Claim]:
    try:
        python = environment("litgpt", LITGPT, arguments.environments)
    except PeerMissing as missing:
        return [Claim(f"loop_vs_litgpt{mode}", None, "ratio of tokens per CPU-second", "> 1", "litgpt", str(missing))
                for mode in LITGPT_MODES]
    return [against_litgpt(python, mode, *how, arguments.rounds) for mode, how in LITGPT_MODES.items()]


def against_litgpt(python: Path, mode: str, ours_compiled: bool, compiled: bool, micro: int | None,
                   rounds: int) -> Claim:
    turn, warmup = 1, 2
    steps = turn * (rounds + warmup)
    model = quickstart_stage(1).model.model_copy(update={"tied": False})
    stage = quickstart_stage(steps, model=model, input="rows", precision="fp32",
                             optimizer=AdamW(lr=1e-3, weight_decay=0.0))
    if not (data() / "rows").exists():
        whole_rows(stage.length)
    run = prepare(stage, f"litgpt{mode}", compiled=ours_compiled)
    micro = min(micro or run.decided["micro_rows"], stage.rows)
    job = litgpt_job(run, steps, micro, run.context.folder / "peer")
    losses: list[float] = []
    variables = {} if compiled else {"TORCHDYNAMO_DISABLE": "1"}
    with Peer(python, HERE / "peers" / "litgpt_pretrain.py", job, variables) as peer:

        def other() -> float:
            answer = peer.ask({"steps": turn})
            losses.extend(answer["losses"])
            return turn * stage.batch_tokens / answer["cpu_seconds"]

        paired = against(run.loop(), turn, other, rounds, warmup)
    apart = difference(losses_of(run), losses)
    version = installed_versions(python, ["litgpt"])["litgpt"]
    how = (f"litgpt.pretrain.setup in micro-batches of {micro}, its model "
           + ("compiled" if compiled else "not compiled (TORCHDYNAMO_DISABLE=1)"))
    ours = "compiled" if ours_compiled else "not compiled"
    return Claim(
        f"loop_vs_litgpt{mode}", paired.ratio, "ratio of tokens per CPU-second", "> 1", f"litgpt {version}",
        f"{how}, Tilth's {ours}; untied, rows of one segment; {shape_text(run)}; "
        f"{paired.text('tokens per CPU-second')}; losses of the first steps differ by at most {apart:.1e} nats")


def exact(arguments: argparse.Namespace) -> list[Claim]:
    """Equalities, as the largest difference of two computations."""
    return [accumulation(), resumption(), export()]


def accumulation() -> Claim:
    weights = []
    for micro in (8, 1):
        run = prepare(stage_of(SMALL, 256, 2048, 1, precision="fp32", clip=None), f"accumulate-{micro}", micro)
        loop = run.loop()
        loop.optimizers = {"main": torch.optim.SGD([{"params": list(run.model.parameters()), "peak_lr": 1.0}], lr=1.0)}
        before = torch.cat([p.detach().flatten().clone() for p in run.model.parameters()])
        loop.step()
        weights.append(before - torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    apart = float((weights[0] - weights[1]).abs().max() / weights[0].abs().max())
    return Claim("accumulation_difference", apart, "of the largest gradient", "<= 1e-5", None,
                 "gradient of 8 micro-batches of 1 row against 1 of 8 rows, packed units of unequal length, fp32")


def resumption() -> Claim:
    changes = {"precision": "fp32", "checkpoint": CheckpointConfig(steps=5)}
    straight = prepare(stage_of(SMALL, 256, 2048, 10, **changes), "straight")
    straight.loop().run()
    cut = prepare(stage_of(SMALL, 256, 2048, 10, **changes), "cut")
    loop = cut.loop()
    while loop.at.step < 7:  # killed two steps after its checkpoint
        loop.metrics.write(loop.step())
        if loop.at.step == 5:
            loop.save()
    again = prepare(stage_of(SMALL, 256, 2048, 10, **changes), "cut")
    again.loop().run()
    apart = float(np.abs(np.array(losses_of(straight)) - np.array(losses_of(again))).max())
    for a, b in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        apart = max(apart, float((a - b).detach().abs().max()))
    return Claim("resume_difference", apart, "largest difference of weights and losses", "== 0", None,
                 "a run cut off two steps after a checkpoint and started again, against one that was not, 10 steps")


def export() -> Claim:
    name, unit, peer = "export_logits_difference", "logits", "transformers"
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as missing:
        return Claim(name, None, unit, "<= 1e-4", peer, f"{missing}: pip install 'tilth[hf]'")
    model = prepare(quickstart_stage(1), "export").model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        export_llama(model, folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokens = random_batch(model.config.vocab_size, 4, 512, torch.device("cpu"))["tokens"]
        apart = float((model(tokens) - theirs(tokens).logits).abs().max())
    return Claim(name, apart, unit, "<= 1e-4", f"{peer} {versions('transformers')['transformers']}",
                 "largest difference over 4 x 512 random tokens, the quickstart's shape, fp32")


def quickstart(arguments: argparse.Namespace) -> list[Claim]:
    claims = [claim for run in arguments.quickstart for claim in quickstart_run(run)]
    known = {claim.name for claim in claims}
    missing = "no finished quickstart run of this seed was given: --quickstart RUN"
    return claims + [Claim(f"quickstart_{name}_seed_{seed}", None, unit, wanted, peer, missing)
                     for seed in range(3) for name, (unit, wanted, peer, _) in QUICKSTART.items()
                     if f"quickstart_{name}_seed_{seed}" not in known]


def quickstart_run(run: Path) -> list[Claim]:
    """The claims of one finished run folder."""
    seed = yaml.safe_load((run / "recipe.yaml").read_text())["seed"]
    held_out = read_json(run / "evaluate" / "results.json")["held_out"]
    manifests = {path.parent.name: read_json(path) for path in sorted(run.glob("*/manifest.json"))}
    unfinished = [name for name, one in manifests.items() if one["summary"] is None]
    if unfinished:
        raise RunFailed(f"The stages {', '.join(unfinished)} of {run} are not finished.")
    own = held_out["bits_per_byte"]
    text = f"{own['value']:.4f} ± {own['stderr']:.4f} bits per byte over {own['bytes']:,} bytes"
    threads = min(one["summary"].get("threads", 2) for one in manifests.values())
    claims = []
    for name, (unit, wanted, peer, figure) in QUICKSTART.items():
        # The promise is for two cores: a run that was given one says nothing about it.
        value, reason = (None, f"ran on {threads} thread") if name == "seconds" and threads < 2 else (
            figure(held_out, manifests), text)
        claims.append(Claim(f"quickstart_{name}_seed_{seed}", value, unit, wanted, peer, reason))
    return claims


def minus(rival: str) -> Callable[[dict[str, Any], dict[str, Any]], float]:
    return lambda held_out, manifests: held_out["bits_per_byte"]["value"] - held_out[rival]["value"]


def total_seconds(held_out: dict[str, Any], manifests: dict[str, Any]) -> float:
    return sum(one["seconds"] for one in manifests.values())


def peak_gib(held_out: dict[str, Any], manifests: dict[str, Any]) -> float:
    return max(one["summary"].get("peak_memory_bytes", 0) for one in manifests.values()) / GIB


# name: unit, wanted, peer, figure(held-out scores, manifests of the stages)
QUICKSTART: dict[str, tuple[str, str, str | None, Callable[[dict[str, Any], dict[str, Any]], float]]] = {
    "minus_xz_256k": ("bits per byte", "< 0", "xz -9e on pieces of 256 KiB", minus("xz_256k")),
    "minus_byte_5gram": ("bits per byte", "< 0", "byte 5-gram of the training text", minus("byte_5gram")),
    "minus_xz_whole": ("bits per byte", "< 0", "xz -9e on the whole text (stretch goal)", minus("xz")),
    "seconds": ("s, all stages", "<= 600", None, total_seconds),
    "peak_memory": ("GiB, resident", "<= 4", None, peak_gib),
    "held_out_text": ("MiB", ">= 1", None, lambda held_out, manifests: held_out["bits_per_byte"]["bytes"] / 2**20),
}


def tests(arguments: argparse.Namespace) -> list[Claim]:
    """Wall-clock seconds of the whole suite in two processes."""
    seconds = None
    reason = "takes minutes of two cores: measured only when asked for, with --only tests"
    if "tests" in (arguments.only or []):
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
        last = (done.stdout.strip() or "no output").splitlines()[-1]
        seconds, reason = (None if done.returncode else time.monotonic() - start), f"pytest: {last}"
    return [Claim("tests_seconds", seconds, "s of wall clock, two processes", "<= 300", None, reason)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="pairs of turns that are counted")
    parser.add_argument("--quickstart", type=Path, nargs="+", default=[], metavar="RUN", help="finished run folders")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments (or TILTH_BENCH_ENVS)")
    sections = {"bare": bare, "litgpt": litgpt, "exact": exact, "quickstart": quickstart, "tests": tests}
    return run_sections("pretrain_loop", sections, parser, lambda: versions("safetensors", "tokenizers"), HERE)


if __name__ == "__main__":
    raise SystemExit(main())
