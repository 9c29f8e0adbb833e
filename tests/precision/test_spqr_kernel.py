"""The Triton kernel, run by Triton's interpreter on the CPU; nothing here says that it is right or fast on a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tilth.precision.hessian import Hessian
from tilth.precision.spqr_kernel import multiply
from tilth.precision.weights import GPTQ, RoundToNearest, SpQR

pytest.importorskip("triton", reason="pip install 'triton>=3.6,<3.10'")

# rows, columns, method, least number of outliers
CASES = {
    "3 bits, whole tiles": (32, 256, SpQR(bits=3, tau=0.05), 1),
    "4 bits, odd shape": (33, 100, SpQR(bits=4, tau=0.05), 1),
    "no outliers": (40, 72, SpQR(bits=3, tau=None), 0),
    "odd everything": (19, 45, SpQR(bits=5, group=7, tile_rows=5, scale_bits=4, zero_bits=2), 0),
    "gptq": (20, 150, GPTQ(bits=3, group=50), 0),
    "gptq, two levels": (20, 150, GPTQ(bits=4, group=16, two_level=True), 0),
    "rounded": (5, 30, RoundToNearest(bits=8), 0),
    "16-bit columns and pointers": (60, 400, SpQR(bits=3, tau=0.0001), 2**8),
    "pointers beyond 15 bits": (128, 400, SpQR(bits=2, tau=1e-9), 2**15),
}
LONG = ("16-bit columns and pointers", "pointers beyond 15 bits")  # the interpreter takes a minute for each


def error_of(rows, columns, method, least):
    """The largest difference to the decoded matrix, over the largest output."""
    rng = torch.Generator().manual_seed(0)
    weight, x = 0.02 * torch.randn(rows, columns, generator=rng), torch.randn(600, columns, generator=rng)
    hessian = Hessian(columns)
    hessian.add(x, 4)
    matrix = method.compress(weight, method.factor(hessian.matrix, "")).matrix
    assert matrix.outliers >= least
    expected = matrix.decode() @ x[0]
    return float((multiply(matrix, x[0]) - expected).abs().max() / expected.abs().max())


def interpreted(cases):
    """The errors of `cases`, from a process whose Triton was asked to interpret before it was first imported."""
    done = subprocess.run([sys.executable, __file__, *cases], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_multiplies_as_the_decoded_matrix_does():
    for case, error in interpreted([case for case in CASES if case not in LONG]).items():
        assert error < 1e-5, case


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG)
def test_it_multiplies_large_matrices_too(case):
    assert interpreted([case])[case] < 1e-5


def test_nothing_times_nothing():
    matrix = RoundToNearest(group=16).compress(torch.zeros(4, 0), None).matrix
    assert multiply(matrix, torch.zeros(0)).tolist() == [0, 0, 0, 0]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tilth.precision.spqr_kernel import kernel
found = kernel()
constants = dict(bits=3, group=16, tile_rows=16, scale_bits=3, zero_bits=3, outliers=True, ROWS=16, COLUMNS=128)
types = dict(x="*fp32", y="*fp32", codes="*u8", scales="*u8", zeros="*u8", second="*fp16", values="*fp16",
             columns="*i16", ends="*i16", height="i32", width="i32", groups="i32", tiles="i32", unit="fp32")
source = ASTSource(fn=found, signature=types | dict.fromkeys(constants, "constexpr"),
                   constexprs={(found.arg_names.index(name),): value for name, value in constants.items()})
print("cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm)
"""


@pytest.mark.slow
def test_it_compiles_for_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True,
                          env={**environment, "TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


if __name__ == "__main__":
    print(json.dumps({name: error_of(*CASES[name]) for name in sys.argv[1:]}))
