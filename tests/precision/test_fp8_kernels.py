"""The Triton kernels in Triton's interpreter against their definitions, and compiled (not run) for a GPU.

The interpreter is chosen when Triton is imported, so these tests run in a process of their own.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton (the extra triton)")

BEGIN = """
import math, torch
import numpy as np
np.seterr(divide="ignore")
torch.set_num_threads(1)
from tilth.precision import fp8, kernels
kernels.load()
"""


def in_triton(script: str, interpret: bool) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", BEGIN + textwrap.dedent(script)], env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_packing_alone_over_all_boundary_values():
    """Every code, the midpoints between neighbours, and the floats beside both: what torch's cast gives."""
    in_triton("""
        import triton, triton.language as tl
        kernels.tl = tl
        for dtype, (mantissa, bias) in kernels.LAYOUT.items():
            top = fp8.LARGEST[dtype]
            grid = torch.arange(256, dtype=torch.uint8).view(dtype).float()
            grid = grid[grid.isfinite()].unique()
            edges = torch.cat([grid, (grid[1:] + grid[:-1]) / 2, torch.tensor([1e-40, 2.0**-60, 1e-30])])
            away = torch.full_like(edges, math.inf)
            x = torch.cat([edges, torch.nextafter(edges, away), torch.nextafter(edges, -away), torch.zeros(2),
                           torch.randn(4000) * top / 3]).clamp(-top, top)
            x = torch.cat([x, -x, torch.tensor([math.nan, math.inf, -math.inf])])
            codes = torch.zeros(len(x), dtype=torch.uint8)
            kernels.tensor_kernel[(1,)](x, codes, torch.ones(1), len(x), TOP=top, MANTISSA=mantissa, BIAS=bias,
                                        BLOCK=triton.next_power_of_2(len(x)))
            found, expected = codes.view(dtype).float(), fp8.to_fp8(x, dtype).float()
            assert torch.equal(found.isnan(), expected.isnan())
            at = ~found.isnan()
            assert torch.equal(codes[at], fp8.to_fp8(x, dtype).view(torch.uint8)[at])  # the sign of 0 too
    """, interpret=True)


def test_quantizers_equal_their_definitions_bit_for_bit():
    in_triton("""
        def same(a, b):
            nan = b.codes.float().isnan()
            assert torch.equal(a.codes.float().isnan(), nan) and torch.equal(a.scale, b.scale)
            assert torch.equal(a.codes.view(torch.uint8)[~nan], b.codes.view(torch.uint8)[~nan])
        torch.manual_seed(0)
        bad = torch.tensor([[1.0, math.nan, math.inf, -3.0] + [0.0] * 12])
        for x in (torch.randn(37, 48), torch.randn(3, 5, 16) * 1e-6, torch.zeros(3, 16), bad, torch.zeros(0, 32),
                  torch.randn(70, 32).bfloat16(), torch.randn(48, 32).t()):
            for dtype in (fp8.E4M3, fp8.E5M2):
                same(kernels.quantize_tensor(x, dtype), fp8.quantize_tensor(x, dtype))
            same(kernels.quantize_groups(x), fp8.quantize_groups(x))
    """, interpret=True)


def test_the_fused_step_follows_the_reference():
    """Parameters to float32 rounding, codes equal but where the power function's last bit decides a tie."""
    in_triton("""
        from tilth.optim.coat import Fp8AdamW
        torch.manual_seed(0)
        for rule in ("exact", "sixteenths", None):
            for shape, dtype in (((7, 300), torch.float32), ((128,), torch.bfloat16), ((5,), torch.float32), ((0, 3),
                                 torch.float32)):
                start = torch.randn(shape).to(dtype)
                sides = [torch.nn.Parameter(start.clone()) for _ in range(2)]
                optimizers = [Fp8AdamW([side], lr=1e-2, expansion=rule, fused=fused)
                              for side, fused in zip(sides, (False, True))]
                for step in range(6):
                    grad = torch.randn(shape).to(dtype)
                    if step == 3 and grad.ndim == 2 and len(grad):
                        grad[2] = 0
                    # One step from equal states, so that a tie does not grow.
                    for key, value in optimizers[0].state[sides[0]].items():
                        optimizers[1].state[sides[1]][key] = value.clone() if torch.is_tensor(value) else value
                    sides[1].data.copy_(sides[0].data)
                    for side, optimizer in zip(sides, optimizers):
                        side.grad = grad.clone()
                        optimizer.step()
                    # The interpreter cuts to bfloat16 where it should round: one step of that.
                    near = (1e-5, 1e-7) if dtype == torch.float32 else (2.0**-7, 1e-6)
                    torch.testing.assert_close(sides[1], sides[0], rtol=near[0], atol=near[1])
                    ours, theirs = (optimizer.state[side] for side, optimizer in zip(sides, optimizers))
                    for name in ("m", "v"):
                        codes = [state[name + "_codes"].view(torch.uint8).int() for state in (ours, theirs)]
                        assert (codes[0] - codes[1]).abs().sum() <= 1 + codes[0].numel() // 500
                        torch.testing.assert_close(ours[name + "_largest"], theirs[name + "_largest"], rtol=1e-6,
                                                   atol=1e-30)
                        if rule == "exact":
                            torch.testing.assert_close(ours[name + "_exponent"], theirs[name + "_exponent"],
                                                       rtol=1e-3, atol=0)
                    figures = [list(optimizer.figures().values()) for optimizer in optimizers]
                    torch.testing.assert_close(*figures, rtol=1e-4, atol=1e-6)
    """, interpret=True)


def test_kernels_compile_for_compute_capability_9():
    """Down to machine code, without a GPU; says nothing about what they compute there."""
    found = in_triton("""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        NUMBERS, BYTES = "*fp32", "*u8"
        def compiled(kernel, signature, constants):
            signature = {**signature, **{name: "constexpr" for name in constants}}
            at = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            return triton.compile(ASTSource(kernel, signature, at), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
        moments = {f"{name}_{part}_ptr": kind for name in "mv" for part, kind in
                   (("codes", BYTES), ("largest", NUMBERS), ("exponent", NUMBERS))}
        scalars = ("keep", "lr", "beta1", "beta2", "correction1", "correction2", "eps")
        step = {"flat_ptr": NUMBERS, "grad_ptr": NUMBERS, **moments, "update_ptr": NUMBERS, "n": "i32",
                "groups": "i32", **{name: "fp32" for name in scalars}}
        for expansion in kernels.EXPANSION.values():
            assert compiled(kernels.adamw_kernel, step, {"FULL": 17.8, "LEAST": 1 / 16, "MOST": 32.0, "SIZE": 128,
                                                         "BLOCK": kernels.BLOCK_GROUPS, "EXPANSION": expansion})
        inputs = {"x_ptr": "*bf16", "codes_ptr": BYTES}
        assert compiled(kernels.groups_kernel, {**inputs, "scale_ptr": "*i16", "n": "i32", "groups": "i32"},
                        {"SIZE": 16, "BLOCK": 64})
        assert compiled(kernels.pieces_kernel, {"x_ptr": "*bf16", "piece_ptr": NUMBERS, "n": "i32", "pieces": "i32"},
                        {"SIZE": 1024, "BLOCK": 1})
        for dtype, (mantissa, bias) in kernels.LAYOUT.items():
            assert compiled(kernels.tensor_kernel, {**inputs, "scale_ptr": NUMBERS, "n": "i32"},
                            {"TOP": fp8.LARGEST[dtype], "MANTISSA": mantissa, "BIAS": bias, "BLOCK": 1024})
        print("compiled")
    """, interpret=False)
    assert "compiled" in found
