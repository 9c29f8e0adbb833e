"""AdamW with FP8 states: the size, the step, what survives a checkpoint, and states cut into other parts."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import Shard

from tilth.models import TransformerConfig
from tilth.optim import OPTIMIZERS, AdamW, group_parameters
from tilth.optim import coat as coat_module
from tilth.optim.coat import CoatAdamW, Fp8AdamW
from tilth.optim.coat_state import parts_of, restored, saved
from tilth.optim.optimizers import OptimizerConfig
from tilth.precision.fp8 import dequantize_moment, quantize_moment
from tilth.recipe import BadInput
from tilth.recipe.frame import OneOf
from tilth.select.probe import rates
from tilth.train.checkpoint import load_state, save_state

RULES = ["exact", "sixteenths", None]


def stepped(shapes, steps=3, seed=0, rule="exact", **more):
    """Parameters and their optimizer after some steps of random gradients."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = Fp8AdamW(parameters, lr=1e-2, expansion=rule, **more)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameters, optimizer


def state_bytes(optimizer):
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor))


def same(one, other):
    """Whether two states of a parameter are equal to the bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            a, b = (x.reshape(-1).view(torch.uint8) for x in (value, other[key]))
            assert value.dtype == other[key].dtype and torch.equal(a, b), key
        else:
            assert value == other[key], key
    return True


@pytest.mark.parametrize(("rule", "expected"), [("exact", 2.125), ("sixteenths", 2.125), (None, 2.0625)])
def test_bytes_a_parameter(rule, expected):
    """Two codes, and of each group of 128 two largest magnitudes and two exponents in float32. The published layout
    stores a scale and a centre where this one has a largest magnitude: 2.1875."""
    _, optimizer = stepped([(96, 128), (256,)], rule=rule)
    assert state_bytes(optimizer) / (96 * 128 + 256) == expected <= 2.1875


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_adamws_on_the_stored_moments(rule):
    """One step from a state equals torch's from the same moments; sizes that are no multiple of 128, norms, nothing."""
    parameters, optimizer = stepped([(5, 300), (7,), (0, 3), (4, 128)], rule=rule, weight_decay=0.1, betas=(0.9, 0.95))
    theirs = [nn.Parameter(p.detach().clone()) for p in parameters]
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    for p, q in zip(parameters, theirs, strict=True):
        m, v = optimizer.moments(p)
        reference.state[q] = {"step": torch.tensor(3.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    reference.step()
    for p, q in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        for mine, name in zip(optimizer.moments(p), ("exp_avg", "exp_avg_sq"), strict=True):
            expected = dequantize_moment(quantize_moment(reference.state[q][name].flatten(), rule)).view(p.shape)
            assert (mine - expected).abs().sum() <= 1e-3 * expected.abs().sum()  # a tie may fall the other way
    ratio = [(m / (1 - 0.9**4)) / ((v / (1 - 0.95**4)).sqrt() + 1e-8) for m, v in
             ((s["exp_avg"], s["exp_avg_sq"]) for s in reference.state.values())]
    largest = max(float(one.abs().max()) for one in ratio if one.numel())
    assert optimizer.figures()["largest_update"] == pytest.approx(largest, rel=1e-4)


def test_chunks_and_memory_layout_change_nothing(monkeypatch):
    whole, _ = stepped([(9, 100)])
    monkeypatch.setattr(coat_module, "CHUNK", 256)
    pieces, _ = stepped([(9, 100)])
    assert torch.equal(whole[0], pieces[0])
    turned = nn.Parameter(whole[0].detach().clone().t().contiguous().t())
    straight = nn.Parameter(whole[0].detach().clone())
    for one in (turned, straight):
        one.grad = torch.ones_like(one)
        Fp8AdamW([one]).step()
    assert torch.equal(turned, straight)


def test_a_frozen_row_stays_zero_and_a_bad_gradient_stays_where_it_is():
    parameter = nn.Parameter(torch.ones(3, 128))
    optimizer = Fp8AdamW([parameter], lr=0.1, weight_decay=0.0)
    for step in range(4):
        parameter.grad = torch.randn(3, 128, generator=torch.Generator().manual_seed(step))
        parameter.grad[1] = 0
        if step == 3:
            parameter.grad[2, 5] = torch.nan
        optimizer.step()
    assert torch.equal(parameter[1], torch.ones(128)) and parameter[0].isfinite().all()
    assert parameter[2].isnan().sum() == 1 and parameter[2, 5].isnan()
    m, v = optimizer.moments(parameter)
    assert not m[1].any() and not v[1].any() and (v[0] > 0).all()


def test_bfloat16_parameters_have_float32_scalars():
    parameter = nn.Parameter(torch.randn(2, 130).bfloat16())
    parameter.grad = torch.randn(2, 130).bfloat16()
    optimizer = Fp8AdamW([parameter])
    optimizer.step()
    assert {value.dtype for value in optimizer.state[parameter].values() if torch.is_tensor(value)} == {
        torch.float8_e4m3fn, torch.float32}


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_gives_every_bit_back_and_the_run_goes_on_alike(tmp_path, rule):
    parameters, optimizer = stepped([(5, 300), (7,), (0, 3)], rule=rule)
    save_state(tmp_path / "one", {"optimizers": {"main": optimizer.state_dict()}})
    loaded = load_state(tmp_path / "one")["optimizers"]["main"]
    codes = [value for state in loaded["state"].values() for value in state.values() if torch.is_tensor(value)]
    assert torch.float8_e4m3fn in {value.dtype for value in codes}
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = Fp8AdamW(others, lr=1.0, expansion=rule)
    resumed.load_state_dict(loaded)
    assert resumed.param_groups[0]["lr"] == 1e-2
    for p, q in zip(parameters, others, strict=True):
        assert same(optimizer.state[p], resumed.state[q])
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    resumed.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, others, strict=True))


def test_a_state_with_expansion_is_not_taken_for_one_without():
    parameters, optimizer = stepped([(4, 4)])
    with pytest.raises(BadInput, match="expansion"):
        Fp8AdamW(parameters, expansion=None).load_state_dict(optimizer.state_dict())


def part(parameter, optimizer, rows):
    """The parameter's rows as one of several processes would hold them, and its optimizer."""
    own = nn.Parameter(parameter.detach()[rows].clone())
    return own, Fp8AdamW([own], lr=1e-2, expansion=optimizer.expansion)


def joined(states, codes_shape):
    """What processes save together: codes in the parameter's shape, scalars and sizes in order."""
    found = {"step": states[0]["step"], "sizes": [size for state in states for size in state["sizes"]]}
    for key in states[0]:
        if key not in found:
            found[key] = None if states[0][key] is None else torch.cat([state[key].reshape(-1) for state in states])
    return {key: value.view(codes_shape) if key.endswith("codes") else value for key, value in found.items()}


def test_parts_on_group_boundaries_are_the_whole_bit_for_bit():
    """Rows of 256: each process quantizes its own groups, and together they do what one does."""
    [whole], optimizer = stepped([(6, 256)])
    parts = [part(whole, optimizer, rows) for rows in (slice(0, 2), slice(2, 6))]
    state = optimizer.state_dict()["state"][0]
    for (own, one), rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
        groups = slice(2 * rows.start, 2 * rows.stop)
        mine = {key: value[rows] if key.endswith("codes") else value[groups] if torch.is_tensor(value) else value
                for key, value in state.items()}
        one.load_state_dict({**one.state_dict(), "state": {0: {**mine, "sizes": [own.numel()]}}})
    for seed in range(3):
        grad = torch.randn(6, 256, generator=torch.Generator().manual_seed(seed))
        whole.grad = grad
        optimizer.step()
        for (own, one), rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
            own.grad = grad[rows].clone()
            one.step()
    assert torch.equal(torch.cat([own.detach() for own, _ in parts]), whole)
    together = joined([saved(one.state[own], own) for own, one in parts], (6, 256))
    assert same({**restored(together, whole, "exact")}, optimizer.state[whole])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 9), st.sampled_from(RULES))
def test_any_cut_keeps_whole_groups_and_restores_the_rest_closely(rows, width, cut, rule):
    cut = min(cut, rows)
    [whole], optimizer = stepped([(rows, width)], rule=rule)
    parts = []
    for held in (slice(0, cut), slice(cut, rows)):
        own, one = part(whole, optimizer, held)
        state = optimizer.state_dict()["state"][0]
        flat = slice(held.start * width, held.stop * width)
        values = [dequantize_moment(quantize_moment(m.flatten()[flat], rule)) for m in optimizer.moments(whole)]
        one.state[own] = {"step": state["step"]}
        for name, value in zip(("m", "v"), values, strict=True):
            coat_module.put(one.state[own], name, quantize_moment(value, rule))
        parts.append(saved(one.state[own], own))
    back = restored(joined(parts, (rows, width)), whole, rule)
    fresh = Fp8AdamW([whole], expansion=rule)
    fresh.state[whole] = back
    for ours, theirs in zip(fresh.moments(whole), optimizer.moments(whole), strict=True):
        near = 0.14 * theirs.abs() + theirs.abs().max() * 2.0**-7  # thrice rounded
        assert ((ours - theirs).abs() <= near).all()
    assert back["step"] == 3


SPREAD = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tilth.optim import group_parameters
from tilth.optim.coat import CoatAdamW
from tilth.train.checkpoint import load_state, save_state
from tilth.train.processes import Processes

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 5, bias=False), nn.Linear(5, 37, bias=True))

def train(model, optimizer, steps):
    for step in range(steps):
        x = torch.randn(8, 128, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
model = build()
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = CoatAdamW(lr=1e-2).build(group_parameters(model))
train(model, optimizer, 3)
save_state(Path(folder) / "found", {"weights": list(model.parameters()),
                                    "optimizers": {"main": optimizer.state_dict()}}, Processes(rank, 2))
dist.barrier()
order = [p for group in optimizer.param_groups for p in group["params"]]
layout = {f"/optimizers/main/state/{index}/": p for index, p in enumerate(order)}
again = CoatAdamW(lr=1e-2).build(group_parameters(model))
again.load_state_dict(load_state(Path(folder) / "found", layout)["optimizers"]["main"])
for p in model.parameters():
    for key, value in optimizer.state[p].items():
        other = again.state[p][key]
        assert value == other if not torch.is_tensor(value) else torch.equal(value.reshape(-1).view(torch.uint8),
                                                                            other.reshape(-1).view(torch.uint8)), key
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_of_fsdp_do_what_one_does(tmp_path):
    """The matrix of rows of 128 to the bit; what both save is read by one."""
    script = tmp_path / "spread.py"
    script.write_text(SPREAD)
    running = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], stderr=subprocess.PIPE,
                                text=True) for rank in range(2)]
    errors = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    found = load_state(tmp_path / "found")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 5, bias=False), nn.Linear(5, 37, bias=True))
    optimizer = CoatAdamW(lr=1e-2).build(group_parameters(model))
    for step in range(3):
        x = torch.randn(8, 128, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), found["weights"], strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=2e-3)  # other groups, a tenth of a rate
    one = CoatAdamW(lr=1e-2).build(group_parameters(model))
    one.load_state_dict(found["optimizers"]["main"])
    for parameter in model.parameters():
        for ours, theirs in zip(one.moments(parameter), optimizer.moments(parameter), strict=True):
            assert ours.shape == theirs.shape
            assert ((ours - theirs).abs() <= 0.2 * theirs.abs() + theirs.abs().max() * 2.0**-6).all()


def test_columns_are_refused():
    class Split:
        placements = (Shard(1),)
    with pytest.raises(BadInput, match="columns"):
        parts_of(Split())


def test_the_kind_of_a_recipe():
    choice = OneOf(OptimizerConfig, OPTIMIZERS)
    config = choice.resolve({"kind": "coat_adamw"}, "optimizer")
    assert config is CoatAdamW
    module = TransformerConfig(vocab_size=11, layers=1, width=16, heads=2, context=8).build().initialize(0)
    groups = group_parameters(module)
    ours, theirs = (one.build(groups).param_groups for one in (CoatAdamW(weight_decay=0.3), AdamW(weight_decay=0.3)))
    for mine, other in zip(ours, theirs, strict=True):
        assert all(mine[key] == other[key] for key in ("name", "lr", "peak_lr", "weight_decay", "betas", "eps"))
    assert CoatAdamW(expansion=False).build(groups).expansion is None
    assert CoatAdamW(exponent="sixteenths").build(groups).expansion == "sixteenths"
    with pytest.raises(ValueError, match="betas"):
        Fp8AdamW([nn.Parameter(torch.zeros(1))], betas=(1.0, 0.9))


def test_a_closure_and_a_missing_gradient():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Fp8AdamW([used, unused], lr=0.1, weight_decay=0.0)
    def closure():
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss
    assert optimizer.step(closure).item() == 3.0
    assert torch.equal(unused, torch.ones(3)) and torch.allclose(used, torch.full((3,), 0.9))
    assert optimizer.state_dict()["state"].keys() == {0}


def test_what_a_probe_reads_of_the_second_moment():
    parameters, optimizer = stepped([(3, 128)])
    plain = torch.optim.AdamW(parameters, lr=1e-2)
    m, v = optimizer.moments(parameters[0])
    plain.state[parameters[0]] = {"step": torch.tensor(3.0), "exp_avg": m, "exp_avg_sq": v}
    [(_, ours)], [(_, theirs)] = list(rates(optimizer)), list(rates(plain))
    assert torch.equal(ours, theirs)


def test_states_survive_a_deep_copy():
    parameters, optimizer = stepped([(3, 128)])
    kept = copy.deepcopy(optimizer.state_dict())
    parameters[0].grad = torch.ones(3, 128)
    optimizer.step()
    optimizer.load_state_dict(kept)
    assert optimizer.state[parameters[0]]["step"] == 3
