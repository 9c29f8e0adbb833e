"""Every CUDA path of the project, on one GPU, in one call of under ten minutes.

    python benchmarks/gpu.py [--only SECTION] [--small]

Needs torch, triton, numpy, safetensors and pydantic, and nothing else of what Tilth uses. Sections:

- equal: losses, gradients, optimizer steps and a resumed run on the GPU against those of the CPU, in float32.
- kernels: the Triton kernels against the PyTorch functions that define them, bit for bit or to rounding.
- training: a decoder of 1.1 billion parameters through `Loop.run` in bfloat16: utilisation of the measured
  matrix-product peak, against a plain compiled loop of the same model, what checkpoints in the background cost.
- fp8: end-to-end memory and speed of COAT, kernels against memory bandwidth (the GPU part of `precision.py`).
- decode: one token times a matrix of SpQR's against bfloat16.

A section that fails becomes claims without a value, with the error as their reason. --small: toy sizes on any device,
to see that the script itself works; no results are written on a CPU.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilth.models import TransformerConfig, token_losses
from tilth.objectives import Causal
from tilth.optim import AdamW, Constant, Muon, group_parameters
from tilth.precision import fp8, kernels, spqr_kernel
from tilth.train import Checkpoints, Learner, Loop, LoopSettings
from tilth.train.device import autocast, matmul_peak, wait_for
from tilth.train.loop import seeded
from tilth.train.metrics import NoMetrics
from tilth.train.parallel import Parallel, ParallelSettings
from tilth.train.processes import Processes
from tilth.trial.bench import Claim, show, versions, write_results

HERE = Path(__file__).parent
LARGE = TransformerConfig(vocab_size=32768, layers=20, width=2048, context=2048)  # 1.1 billion parameters
SMALL = TransformerConfig(vocab_size=512, layers=2, width=64, heads=2, context=64)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class RandomRows:
    """Rows of one segment of random tokens, made on the device: what is timed is the loop and the model."""

    def __init__(self, vocabulary: int, length: int, device: torch.device):
        self.vocabulary, self.length, self.device, self.at = vocabulary, length, device, 0

    def next(self, rows: int) -> dict[str, Tensor]:
        tokens = torch.randint(0, self.vocabulary, (rows, self.length + 1), generator=seeded("rows", self.at))
        tokens, index = tokens.to(self.device), torch.arange(rows, device=self.device)
        self.at += rows
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "unit_id": index, "source": index * 0,
                "unit_index": index[:, None].expand(rows, self.length).contiguous(),
                "positions": torch.arange(self.length, device=self.device).expand(rows, -1).contiguous(),
                "weight": torch.ones(rows, device=self.device)}

    def observe(self, unit_id: Tensor, loss: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def loop_of(config: TransformerConfig, folder: Path, *, device: torch.device, steps: int, rows: int, micro_rows: int,
            length: int, precision: str = "fp32", optimizer: Any = None, compile: bool = False) -> Loop:
    learner = Learner(config.build().initialize(0), Causal(), flops_per_row=length * config.flops_per_token(length))
    learner.to(device)
    parallel = Parallel(learner, Processes(), ParallelSettings(compile=compile), precision, device)
    choice = optimizer or AdamW(lr=1e-4)
    return Loop(learner, RandomRows(config.vocab_size or 0, length, device),
                {"main": choice.build(learner.parameter_groups("main"))}, Constant(warmup=0),
                LoopSettings(steps, rows, micro_rows, precision=precision, device=device, checkpoint_seconds=1e9),
                Checkpoints(folder, {"benchmark": 1}, background=True), NoMetrics(), parallel=parallel)


def equal(small: bool) -> list[Claim]:
    claims = []
    for name, optimizer in (("adamw", AdamW(lr=1e-2)), ("muon", Muon(lr=1e-2))):
        lines: dict[str, list[float]] = {}
        for device in (torch.device("cpu"), DEVICE):
            with tempfile.TemporaryDirectory() as folder:
                loop = loop_of(SMALL, Path(folder), device=device, steps=8, rows=4, micro_rows=2, length=64,
                               optimizer=optimizer)
                loop.restore()
                lines[device.type if device is DEVICE else "reference"] = [loop.step()["loss"] for _ in range(8)]
        ours, reference = lines[DEVICE.type], lines["reference"]
        apart = max(abs(a - b) / b for a, b in zip(ours, reference, strict=True))
        claims.append(Claim(f"equal_losses_{name}", apart, "relative difference", "<= 1e-3", "the same steps on a CPU",
                            f"8 steps of {SMALL.parameters():,} parameters in float32; Muon orthogonalises in bfloat16 "
                            f"on a GPU" if name == "muon" else "8 steps in float32"))
    return [*claims, resumed()]


def resumed() -> Claim:
    ends = []
    for stops in ((6,), (3, 6)):
        with tempfile.TemporaryDirectory() as folder:
            for steps in stops:
                loop = loop_of(SMALL, Path(folder), device=DEVICE, steps=steps, rows=4, micro_rows=2, length=64,
                               precision="bf16" if DEVICE.type == "cuda" else "fp32")
                loop.run()
            ends.append([parameter.detach().cpu().clone() for parameter in loop.learner.modules.parameters()])
    apart = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    return Claim("resumed_run", apart, "largest difference of a weight", "<= 0", "the run that was not stopped",
                 "6 steps, stopped and gone on after 3")


def kernels_equal(small: bool) -> list[Claim]:
    wanted = ["FP8 AdamW", "FP8 of a tensor", "FP8 of groups"]
    if DEVICE.type != "cuda":
        return [Claim(f"kernel: {name}", None, "numbers that differ", "<= 0", "PyTorch", "no GPU") for name in wanted]
    from tilth.optim.coat import adamw_step
    generator = seeded("kernels", device=DEVICE)
    x = torch.randn(4096, 1024, device=DEVICE, generator=generator)
    x *= torch.logspace(-8, 4, 4096, device=DEVICE)[:, None]
    pairs = []
    for step in (kernels.adamw_step, adamw_step):
        flat, grad = x.flatten().clone(), (x.flatten().roll(1) * 1e-3)
        first, second = (fp8.quantize_moment(part) for part in (grad * 0.1, grad.square() * 0.01))
        step(flat, grad, first, second, number=3, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, decay=0.01, expansion="exact")
        pairs.append(torch.cat([flat, first.codes.float(), second.codes.float()]))
    groups = [function(x).codes.float() for function in (kernels.quantize_groups, fp8.quantize_groups)]
    tensors = [function(x).codes.float() for function in (kernels.quantize_tensor, fp8.quantize_tensor)]
    return [Claim(f"kernel: {name}", float((a != b).sum()), "numbers that differ", "<= 0", "PyTorch, on the GPU",
                  f"{a.numel():,} numbers") for name, (a, b) in zip(wanted, (pairs, tensors, groups), strict=True)]


def training(small: bool) -> list[Claim]:
    config, length, rows, micro = (SMALL, 64, 4, 2) if small else (LARGE, 2048, 16, 4)
    precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    steps = 3 if small else 8
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_of(config, Path(folder), device=DEVICE, steps=10**6, rows=rows, micro_rows=micro, length=length,
                       precision=precision, compile=DEVICE.type == "cuda")
        loop.restore()
        ours = rate(loop.step, steps, rows * length)
        start = time.perf_counter()
        loop.save()
        waited = time.perf_counter() - start
        loop.checkpoints.wait()
        flops = (loop.learner.flops_per_row or 0.0) / length
        del loop
    theirs = rate(plain_loop(config, length, rows, micro, precision), steps, rows * length)
    peak = matmul_peak(DEVICE, precision)
    how = f"{config.parameters():,} parameters, {rows} x {length} tokens a step, {micro} rows at a time, {precision}"
    return [
        Claim("utilisation_1b", ours * flops / peak, "share of the matrix-product peak", ">= 0.5", "this device's peak",
              f"{ours:.0f} tokens/s of {peak / 1e12:.1f} TFLOP/s; {how}; blocks compiled"),
        Claim("vs_compiled_loop_1b", ours / theirs, "ratio of tokens per second", ">= 1.0", "a plain compiled loop",
              f"{ours:.0f} against {theirs:.0f} tokens/s; {how}"),
        Claim("background_checkpoint_stall_gpu", waited / (120 + waited), "share of the time of training", "< 0.02",
              "a checkpoint every 120 s", f"{waited * 1000:.0f} ms of waiting for the copy; {how}")]


def plain_loop(config: TransformerConfig, length: int, rows: int, micro: int, precision: str) -> Callable[[], Any]:
    """Steps of the same model, whole and compiled, by a loop of ten lines."""
    model: Any = config.build().initialize(0).to(DEVICE)
    optimizer = AdamW(lr=1e-4).build(group_parameters(model))
    stream = RandomRows(config.vocab_size or 0, length, DEVICE)
    hidden = torch.compile(model.hidden) if DEVICE.type == "cuda" else model.hidden

    def step() -> None:
        for _ in range(rows // micro):
            batch = stream.next(micro)
            with autocast(precision, DEVICE):
                losses = token_losses(hidden(batch["tokens"]), model.output_weight, batch["targets"])
            (losses.sum() / (rows * length)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rate(step: Callable[[], Any], steps: int, tokens: int) -> float:
    """Tokens a second, after three steps that warm up."""
    for _ in range(3):
        step()
    wait_for(DEVICE)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait_for(DEVICE)
    return steps * tokens / (time.perf_counter() - start)


def fp8_paths(small: bool) -> list[Claim]:
    from precision import gpu
    return gpu(argparse.Namespace())


def decode(small: bool) -> list[Claim]:
    """One token times a matrix of SpQR's, by the kernel, against the bfloat16 product of the same shape."""
    from tilth.precision.hessian import Factor
    from tilth.precision.weights import SpQR
    claims = []
    for outputs, inputs in ((4096, 4096), (4096, 11008)):
        name = f"spqr.gpu_decode_{outputs}x{inputs}_against_bf16"
        if DEVICE.type != "cuda":
            claims.append(Claim(name, None, "x time", "<= 1", "torch, bf16", "no GPU"))
            continue
        method = SpQR(bits=4)
        weight = torch.randn(outputs, inputs, generator=seeded("weight")) * 0.02
        matrix = method.compress(weight, Factor.identity(inputs)).matrix
        matrix = replace(matrix, tensors={part: tensor.to(DEVICE) for part, tensor in matrix.tensors.items()})
        x = torch.randn(inputs, device=DEVICE)
        apart = float((spqr_kernel.multiply(matrix, x) - matrix.decode().float() @ x).abs().max())
        low, token = weight.to(DEVICE, torch.bfloat16), x.bfloat16()
        ours, theirs = (1 / rate(work, 100, 1) for work in (lambda m=matrix, v=x: spqr_kernel.multiply(m, v),
                                                            lambda w=low, v=token: w @ v))
        claims.append(Claim(name, ours / theirs, "x time", "<= 1", "torch, bf16",
                            f"{ours * 1e6:.0f} against {theirs * 1e6:.0f} microseconds; largest difference from the "
                            f"decoded matrix {apart:.1e}"))
    return claims


SECTIONS: dict[str, Callable[[bool], list[Claim]]] = {
    "equal": equal, "kernels": kernels_equal, "training": training, "fp8": fp8_paths, "decode": decode}


def run(name: str, small: bool) -> list[Claim]:
    """The claims of a section; an error is a claim without a value, so that the other sections still run."""
    try:
        return SECTIONS[name](small)
    except Exception as error:
        return [Claim(f"section {name}", None, "claims", ">= 1", None, f"failed: {type(error).__name__}: {error}")]


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(SECTIONS))
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only or SECTIONS:
        claims = run(name, arguments.small)
        failed += claims[0].reason.startswith("failed")
        show(claims)
        if DEVICE.type == "cuda" and not arguments.small:
            facts = {**versions(), "gpu": torch.cuda.get_device_name(), "commit": commit(),
                     "date": time.strftime("%Y-%m-%d")}
            write_results(arguments.results / "gpu.json", claims, facts)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
