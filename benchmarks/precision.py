"""FP8 training: optimizer states, update error and final loss beside their peers, memory by part, and a GPU's share.

    TILTH_DATA=FOLDER python benchmarks/precision.py [--only states|training|memory|gpu]

`training` takes the runs of evidence/coat, and given TILTH_DATA does those that are missing, which takes half an hour
on one core and needs torchao beside Tilth: pip install 'torchao>=0.16'. `memory` follows one step of training
with PyTorch's own tracker of live bytes. `gpu` needs a GPU with FP8 products; without, its claims are null.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilth.models import TransformerConfig, token_losses
from tilth.optim import AdamW, OptimizerConfig, group_parameters
from tilth.optim.coat import CoatAdamW
from tilth.precision import fp8, kernels
from tilth.precision.activations import Mode, has_products, use_mode
from tilth.recipe.files import read_json
from tilth.stages.building import state_bytes
from tilth.train.device import SavedBytes
from tilth.trial.bench import Claim, measure, run_sections, versions

HERE = Path(__file__).resolve().parent
EVIDENCE = HERE.parent / "evidence" / "coat"
SEEDS = [0, 1, 2, 3, 4]
SMALL = TransformerConfig(vocab_size=4096, layers=4, width=256, heads=4, feed_forward=688, context=512)
# A decoder of 1.1 billion parameters in the proportions of Llama 2 7B, its two tables tied.
LARGE = TransformerConfig(vocab_size=32000, layers=20, width=2048, heads=16, feed_forward=5504, context=2048)
NO_GPU = "no GPU at hand: the kernels were run by Triton's interpreter and compiled for compute capability 9.0 only"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sections = {"states": states, "training": training, "memory": memory, "gpu": gpu}
    return run_sections("precision", sections, parser, lambda: versions("torchao", "triton"), HERE)


def states(arguments: argparse.Namespace) -> list[Claim]:
    """Bytes of state a parameter, of a whole small model with its norms."""
    model = SMALL.build().initialize(0)
    optimizer = CoatAdamW().build(group_parameters(model))
    step(model, optimizer, tokens(SMALL, 1, "cpu"))
    count = sum(parameter.numel() for parameter in model.parameters())
    return [Claim("optimizer state, bytes a parameter", state_bytes(optimizer) / count, "bytes", "<= 2.2",
                  "AdamW in float32: 8", f"{count} parameters in matrices, a table and norms; all tensors counted")]


def training(arguments: argparse.Namespace) -> list[Claim]:
    """Update error on real moments and final loss, from the runs of the evidence."""
    run = load_evidence()
    if "TILTH_DATA" in os.environ:
        sys.argv = [str(EVIDENCE / "run.py"), "--arms", *run.JUDGED]
        run.main()
    runs = read_json(EVIDENCE / "runs.json")
    trained = [seed for seed in SEEDS if f"fp32-{seed}" in runs]
    claims = []
    for over, which in (("all", "of all entries"), ("kept", "of entries whose v plain FP8 does not round to 0")):
        times = run.improvement(runs, trained, over, "expanded")
        claims.append(Claim(
            f"update error without expansion over with, {which}", min(times), "x", ">= 2", "FP8 without expansion",
            f"least of seeds; mean square error of m / (sqrt(v) + eps), moments of real runs: "
            f"{', '.join(f'{one:.2f}' for one in times)}"))
    peers = {"fp32": ("AdamW in float32", "<= 1.01"), "fp8": ("FP8 states without expansion, 2.06 bytes", "< 1"),
             "torchao_fp8": ("torchao AdamWFp8, 2.13 bytes", "< 1"),
             "torchao_8bit": ("torchao AdamW8bit, 2.20 bytes", "< 1")}
    for arm, (peer, wanted) in peers.items():
        found = run.paired(runs, "coat", arm, SEEDS, lambda one: one["bits_per_byte"])
        low, high = found["ratio_interval"]
        claims.append(Claim(
            f"held-out loss with FP8 states, over {peer.split(',')[0]}", high, "ratio", wanted, peer,
            f"upper end of the 95 % interval [{low:.4f}, {high:.4f}] over {len(found['seeds'])} seeds, mean "
            f"{found['ratio']:.4f}; {found['value']:.4f} against {found['baseline_value']:.4f} bits per byte, 2.125 "
            f"bytes of state"))
    return claims


def load_evidence() -> Any:
    """The script of the evidence, as a module."""
    spec = importlib.util.spec_from_file_location("coat_evidence", EVIDENCE / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def memory(arguments: argparse.Namespace) -> list[Claim]:
    """Peak of a step by part: float32 and bfloat16 with AdamW, then with FP8 states and activations under bfloat16."""
    before = {name: peak(SMALL, "plain", AdamW(), low) for name, low in (("float32", False), ("bfloat16", True))}
    after = peak(SMALL, "coat", CoatAdamW(), low=True)
    base = before["bfloat16"]
    claims = [Claim(f"peak memory on a CPU, {part}: coat over bfloat16", after[part] / base[part], "ratio", wanted,
                    "AdamW, bfloat16 autocast",
                    f"{after[part] / 2**20:.1f} against {base[part] / 2**20:.1f} MiB (in float32 "
                    f"{before['float32'][part] / 2**20:.1f}) at the peak of a step of two micro-batches of 2 x 512, "
                    f"{SMALL.parameters()} parameters; total with temporary tensors")
              for part, wanted in (("weights", "<= 1"), ("gradients", "<= 1"), ("moments", "<= 0.275"),
                                   ("activations", "<= 0.667"), ("total", "<= 0.65"))]
    plain, ours = (layer_bytes(mode) for mode in ("plain", "coat"))
    claims.append(Claim(
        "activations of one layer, bfloat16 over coat", plain / ours, "x", ">= 1.5", "the same layer in bfloat16",
        f"{plain:.4g} against {ours:.4g} bytes a token and feature at the proportions of Llama 2 7B; 1.50 by the "
        f"method's accounting, 1.65 as published for a norm that saves more copies"))
    return claims


def peak(config: TransformerConfig, mode: Mode, choice: OptimizerConfig, low: bool) -> dict[str, int]:
    """Bytes alive by part at the peak of the second step, which accumulates two micro-batches."""
    from torch.distributed._tools.mem_tracker import MemTracker
    model = config.build().initialize(0)
    use_mode(model, mode)
    optimizer = choice.build(group_parameters(model))
    batch = tokens(config, 2, "cpu")
    step(model, optimizer, batch, low)
    gradients(model, batch, low)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:  # the second micro-batch: gradients are there already
        step(model, optimizer, batch, low)
    found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    by_name = {getattr(part, "name", str(part)): size for part, size in found.items()}
    names = {"PARAM": "weights", "GRAD": "gradients", "OPT": "moments", "ACT": "activations", "TEMP": "temporary",
             "Total": "total"}
    return {ours: by_name[theirs] for theirs, ours in names.items()}


def layer_bytes(mode: Mode) -> float:
    """Bytes that one layer keeps for the backward pass under bfloat16, a token and feature: of two layers less one."""
    found = []
    for layers in (1, 2):
        model = SMALL.model_copy(update={"layers": layers}).build().initialize(0)
        use_mode(model, mode)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with SavedBytes(weights) as saved, torch.autocast("cpu", torch.bfloat16):
            model.hidden(tokens(SMALL, 4, "cpu"))
        found.append(saved.bytes)
    return (found[1] - found[0]) / (4 * SMALL.context * SMALL.width)


def tokens(config: TransformerConfig, rows: int, device: str) -> torch.Tensor:
    drawn = torch.randint(0, config.vocab_size or 1, (rows, config.context), generator=torch.Generator().manual_seed(0))
    return drawn.to(device)


def gradients(model: Any, batch: torch.Tensor, low: bool) -> None:
    """Forward and backward of a micro-batch."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=low):
        loss = token_losses(model.hidden(batch[:, :-1]), model.output_weight, batch[:, 1:]).mean()
    loss.backward()


def step(model: Any, optimizer: torch.optim.Optimizer, batch: torch.Tensor, low: bool = False) -> None:
    """A micro-batch and an update."""
    gradients(model, batch, low)
    optimizer.step()
    optimizer.zero_grad()


def gpu(arguments: argparse.Namespace) -> list[Claim]:
    """A step of a decoder of 1.1 billion parameters, and the kernels against the memory's measured bandwidth."""
    wanted = {"end-to-end memory on an H200, coat over bfloat16": ("ratio", "<= 0.649", "AdamW, bfloat16"),
              "end-to-end speed on an H200, coat over bfloat16": ("x", ">= 1.43", "AdamW, bfloat16"),
              "FP8 AdamW kernel, share of memory bandwidth": ("share", ">= 0.6", "measured copy"),
              "quantizing kernel, share of memory bandwidth": ("share", ">= 0.6", "measured copy")}
    reasons: list[tuple[float | None, str]] = [(None, NO_GPU)] * len(wanted)
    if torch.cuda.is_available() and has_products(torch.device("cuda")):
        reasons = [*end_to_end(), *bandwidths()]
    return [Claim(name, value, unit, limit, peer, reason) for (name, (unit, limit, peer)), (value, reason) in
            zip(wanted.items(), reasons, strict=True)]


def end_to_end() -> list[tuple[float, str]]:
    """Peak memory and time of steps, both sides in turns."""
    batch = tokens(LARGE, 4, "cuda")

    def side(mode: Mode, choice: OptimizerConfig) -> Callable[[], float]:
        def turn() -> float:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            model: nn.Module = LARGE.build().initialize(0).to("cuda")
            use_mode(model, mode)
            optimizer = choice.build(group_parameters(model))
            step(model, optimizer, batch, low=True)
            seconds = timed(lambda: step(model, optimizer, batch, low=True), 10)
            peaks[mode] = torch.cuda.max_memory_allocated()
            return batch.numel() / seconds
        return turn

    peaks: dict[str, int] = {}
    found = measure(side("coat", CoatAdamW()), side("plain", AdamW()), rounds=3)
    name = torch.cuda.get_device_name()
    coat, plain = (peaks[mode] / 2**30 for mode in ("coat", "plain"))
    return [(coat / plain, f"{name}: {coat:.1f} against {plain:.1f} GiB allocated at the peak, {LARGE.parameters()} "
             f"parameters, 4 x 2048 tokens, neither compiled"),
            (found.ratio, f"{name}: {found.text('tokens per second')}, neither compiled")]


def bandwidths() -> list[tuple[float, str]]:
    """Bytes that each kernel must move over its time, as a share of those of a copy."""
    count = 1 << 28
    flat, grad = torch.randn(count, device="cuda"), torch.randn(count, device="cuda")
    copy = 8 * count / timed(lambda: flat.copy_(grad), 20)
    moments = [fp8.quantize_moment(torch.zeros(count, device="cuda")) for _ in range(2)]
    adamw = timed(lambda: kernels.adamw_step(flat, grad, *moments, number=2, lr=1e-4, betas=(0.9, 0.95), eps=1e-8,
                                             decay=0.0, expansion="exact"), 20)
    low = flat.bfloat16().view(-1, 4096)
    quantize = timed(lambda: kernels.quantize_groups(low), 20)
    rates = [(12 + 2 * 2 * (1 + 8 / 128)) * count / adamw, (2 + 1 + 2 / 16) * count / quantize]
    return [(rate / copy, f"{rate / 1e12:.2f} of {copy / 1e12:.2f} TB/s of a copy, {count} numbers") for rate in rates]


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call on the GPU, the mean of `repeats` after one that warms up."""
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    sys.exit(main())
