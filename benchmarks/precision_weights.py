"""Compressed weights: what they cost and spare, in time and memory, beside plain ones.

    python benchmarks/precision_weights.py [--rounds 5] [--evidence evidence/spqr/result.json]

quality reads the figures of the evidence on five trained models (its own command measures them); quantize times each
method on one matrix of a 7B Llama; decode multiplies one token on the CPU, packed weights against bfloat16 and float32;
memory generates text from one model in three processes, packed, plain, and without a model. The GPU claims have no
value until somebody runs the kernel on one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tilth.data.tokenizer import BytesTokenizer
from tilth.models import TransformerConfig
from tilth.precision.calibrate import compress_model
from tilth.precision.hessian import Factor, Hessian
from tilth.precision.linear import CompressedLinear
from tilth.precision.matrix import CompressedMatrix
from tilth.precision.weights import GPTQ, Method, RoundToNearest, SpQR
from tilth.recipe.files import read_json
from tilth.stages.compressed_folder import save_compressed
from tilth.stages.model_folder import save_model
from tilth.trial.bench import Claim, measure, run_sections, versions

HERE = Path(__file__).resolve().parent
SHAPES = ((4096, 4096), (11008, 4096))  # out x in
NO_GPU = "no GPU at hand: the kernel was run by Triton's interpreter and compiled for compute capability 9.0 only"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evidence", type=Path, default=HERE.parent / "evidence" / "spqr" / "result.json")
    return run_sections("precision_weights", {"quality": quality, "quantize": quantize, "decode": decode,
                                              "memory": memory, "gpu": gpu}, parser, versions, HERE)


def quality(arguments: argparse.Namespace) -> list[Claim]:
    """The figures of the evidence, as claims."""
    below = "bits per byte, upper end of the 95 % interval"
    gptq, rounding = "GPTQ at at least as many bits", "rounding to nearest at at least as many bits"
    claims = (("spqr.perplexity_lost", "relative, the worst of the seeds", "< 0.01", "the same model uncompressed"),
              ("spqr.bits_per_weight", "bits, the most of the seeds", "<= 4.6", None),
              ("spqr.seeds", "models", ">= 5", None), ("spqr.below_gptq", below, "< 0", gptq),
              ("spqr.below_rtn", below, "< 0", rounding), ("spqr.below_gptq_3_bit", below, "< 0", gptq),
              ("spqr.below_rtn_3_bit", below, "< 0", rounding))
    if not arguments.evidence.exists():
        return [Claim(name, None, unit, wanted, peer, "run evidence/spqr/run.py first")
                for name, unit, wanted, peer in claims]
    found = read_json(arguments.evidence)
    arms, against = found["arms"], found["against"]
    pairs = {"spqr.below_gptq": "spqr-4 - gptq-4", "spqr.below_rtn": "spqr-4 - rtn-4",
             "spqr.below_gptq_3_bit": "spqr-3 - gptq-3", "spqr.below_rtn_3_bit": "spqr-3 - rtn-3"}
    values = {"spqr.perplexity_lost": max(arms["spqr-4"]["perplexity_lost"]),
              "spqr.bits_per_weight": arms["spqr-4"]["bits_per_weight_most"], "spqr.seeds": len(found["seeds"]),
              **{name: max(against[pair]["interval"][1], against[pair]["interval_seeds"][1])
                 for name, pair in pairs.items()}}
    reasons = {}
    for name, pair in pairs.items():
        one, (ours, theirs) = against[pair], (arms[arm]["bits_per_weight"] for arm in pair.split(" - "))
        low, high = one["interval"]
        reasons[name] = (f"{one['difference']:+.5f}, 95 % {low:+.5f} to {high:+.5f}; at {ours:.3f} against {theirs:.3f}"
                         f" bits")
    reasons["spqr.perplexity_lost"] = "by seed: " + ", ".join(f"{100 * one:.2f} %"
                                                              for one in arms["spqr-4"]["perplexity_lost"])
    return [Claim(name, float(values[name]), unit, wanted, peer, reasons.get(name, "evidence/spqr"))
            for name, unit, wanted, peer in claims]


def quantize(arguments: argparse.Namespace) -> list[Claim]:
    """CPU-seconds of one 4096 x 4096 matrix."""
    torch.manual_seed(0)
    rows, columns = SHAPES[0]
    weight = 0.02 * torch.randn(rows, columns)
    hessian = Hessian(columns)
    for _ in range(8):
        hessian.add(torch.randn(1024, columns) * torch.linspace(0.2, 2, columns), 1)
    seconds = {}
    for method in (SpQR(bits=4), GPTQ(bits=4), RoundToNearest(bits=4, group=128)):
        start = time.process_time()
        factor = method.factor(hessian.matrix, "") if method.calibrated else Factor.identity(columns)
        factored = time.process_time()
        method.compress(weight, factor)
        seconds[method.kind] = (time.process_time() - factored, factored - start)
    detail = ", ".join(f"{kind} {solved:.1f} s and {factored:.1f} s for the factor"
                       for kind, (solved, factored) in seconds.items())
    return [Claim("spqr.quantize_against_gptq", seconds["spqr"][0] / seconds["gptq"][0], "x CPU time, factor left out",
                  "> 0", "GPTQ, the same solver without outliers", f"{rows} x {columns}: {detail}")]


def packed(rows: int, columns: int, method: Method, outlier_share: float) -> CompressedMatrix:
    """A matrix of random codes in the layout of `method`: as fast or slow as a real one."""
    rng = torch.Generator().manual_seed(0)
    layout = method.layout(rows, columns, 1.0)
    codes = torch.randint(0, 2**layout.bits, (rows, columns), dtype=torch.uint8, generator=rng)
    small = {name: torch.randint(0, 8, (rows, layout.groups), dtype=torch.uint8, generator=rng)
             for name in ("scale_codes", "zero_codes")}
    second = torch.tensor([0.001, -1.0, 0.5, -2.0]).half()[:, None, None].repeat(1, layout.tiles, layout.groups)
    outliers = torch.rand(rows, columns, generator=rng) < outlier_share
    return CompressedMatrix.build(layout, codes, {**small, "second": second}, outliers,
                                  torch.randn(rows, columns, generator=rng), torch.randperm(columns, generator=rng))


def decode(arguments: argparse.Namespace) -> list[Claim]:
    """One token on the CPU."""
    claims = []
    for rows, columns in SHAPES:
        x = torch.randn(1, 1, columns)
        for bits in (3, 4):
            layer = CompressedLinear(packed(rows, columns, SpQR(bits=bits), 0.003))
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
                plain, token = torch.randn(rows, columns, dtype=dtype), x.to(dtype)
                turns = measure(partial(_seconds, layer, x), partial(_seconds, F.linear, token, plain),
                                arguments.rounds)
                claims.append(Claim(f"spqr.cpu_decode_{bits}_bit_{rows}x{columns}_against_{name}", turns.ratio,
                                    "x CPU time", "<= 1", f"torch, {name}", turns.text("s a token")))
    return claims


@torch.no_grad()
def _seconds(work: Callable[..., Any], *arguments: torch.Tensor) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


# VmHWM, since a child's ru_maxrss begins at what its parent held.
SCRIPT = """
import json, re, sys, time
import torch
from tilth.models import TransformerConfig, generate
from tilth.stages.model_folder import load_model
torch.set_num_threads(1)
found = {}
warm = TransformerConfig(layers=1, width=32, vocab_size=64).build().initialize(0)  # what any model brings along
list(generate(warm, [1], max_tokens=2))
if sys.argv[1] != "-":
    model, tokenizer = load_model(sys.argv[1])
    start = time.process_time()
    list(generate(model, [1, 2, 3], max_tokens=16, temperature=0))
    found["seconds_a_token"] = (time.process_time() - start) / 16
found["peak_bytes"] = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps(found))
"""


def memory(arguments: argparse.Namespace) -> list[Claim]:
    """Resident memory of processes that load a model and write 16 tokens; bytes of the folders by part."""
    torch.manual_seed(0)
    method = SpQR(bits=4)
    with tempfile.TemporaryDirectory(prefix="tilth-bench-") as place:
        model = TransformerConfig(layers=1, width=1024, context=256, vocab_size=257).build().initialize(0)
        tokenizer = BytesTokenizer().build([])
        save_model(Path(place) / "plain", model, tokenizer)
        start = time.process_time()
        compress_model(model, method, [{"tokens": torch.randint(0, 257, (4, 256))} for _ in range(4)])
        seconds = time.process_time() - start
        bits = save_compressed(Path(place) / "packed", model, tokenizer, method)
        found = {name: _run(str(Path(place) / name) if name != "-" else "-") for name in ("-", "plain", "packed")}
    peak = {name: found[name]["peak_bytes"] - found["-"]["peak_bytes"] for name in ("plain", "packed")}
    parts = ", ".join(f"{part} {size / 2**20:.2f}" for part, size in bits["bytes"].items())
    detail = (f"{bits['parameters'] / 1e6:.1f} M parameters; above a process with a tiny model, packed "
              f"{peak['packed'] / 2**20:.0f} and plain float32 {peak['plain'] / 2**20:.0f} MiB")
    return [
        Claim("spqr.weights_on_disk_against_float32", sum(bits["bytes"].values()) / (4 * bits["parameters"]),
              "x bytes", "<= 0.16", "the uncompressed folder",
              f"{bits['per_weight']:.3f} bits a weight, {bits['per_parameter']:.3f} a parameter; MiB by part: {parts}"),
        Claim("spqr.resident_memory_against_float32", peak["packed"] / peak["plain"], "x bytes", "< 1",
              "the uncompressed model", detail),
        Claim("spqr.generate_against_float32", found["packed"]["seconds_a_token"] / found["plain"]["seconds_a_token"],
              "x CPU time a token", "<= 1", "the uncompressed model",
              f"{found['packed']['seconds_a_token']:.4f} against {found['plain']['seconds_a_token']:.4f} s a token"),
        Claim("spqr.compress_microseconds_a_weight", 1e6 * seconds / bits["weights"], "us, CPU", "> 0", None,
              f"{seconds:.1f} s for {bits['weights'] / 1e6:.1f} M weights, 16 rows of 256 tokens to calibrate on")]


def _run(folder: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def gpu(arguments: argparse.Namespace) -> list[Claim]:
    """What a GPU has to show."""
    claims = [Claim(f"spqr.gpu_decode_{rows}x{columns}_against_bf16", None, "x time", "<= 1", "torch, bf16", NO_GPU)
              for rows, columns in SHAPES]
    return [*claims, Claim("spqr.gpu_kernel_share_of_bandwidth", None, "share of measured memory bandwidth", ">= 0.6",
                           None, NO_GPU)]


if __name__ == "__main__":
    sys.exit(main())
