"""benchmarks/gpu.py runs (at toy sizes, on a CPU), and an error in one section does not hide the others."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


def test_same_device_gives_the_same_losses_and_resumes_exactly(script):
    claims = script.run("equal", small=True)
    assert [claim.name for claim in claims] == ["equal_losses_adamw", "equal_losses_muon", "resumed_run"]
    if script.DEVICE.type == "cpu":
        assert all(claim.value == 0 for claim in claims)
    assert all(claim.met for claim in claims)


def test_training_section_names_the_claims_of_the_engine(script):
    claims = script.run("training", small=True)
    assert {"utilisation_1b", "vs_compiled_loop_1b", "background_checkpoint_stall_gpu"} == {one.name for one in claims}
    assert all(claim.value > 0 for claim in claims)


def test_a_failing_section_is_a_claim_without_a_value(script, monkeypatch):
    monkeypatch.setitem(script.SECTIONS, "decode", lambda small: 1 / 0)
    [claim] = script.run("decode", small=True)
    assert claim.value is None and "ZeroDivisionError" in claim.reason
