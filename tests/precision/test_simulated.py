"""Rounding layers: the three products by hand, straight-through gradients, chosen layers and steps."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tilth.models import TransformerConfig
from tilth.precision.formats import NumberFormat, quantize
from tilth.precision.simulated import Simulated, SimulatedLinear
from tilth.recipe import BadInput, parse


def model(seed=0):
    return TransformerConfig(layers=2, width=16, heads=2, feed_forward=32, context=16, vocab_size=20).build(
        ).initialize(seed)


def gradients(net, tokens):
    net.zero_grad()
    F.cross_entropy(net(tokens).flatten(0, 1).float(), tokens.flatten()).backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


TOKENS = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("forward", "backward"), [("E8M3", "E5M2"), ("E8M3", None), (None, "E4M3fn")])
def test_the_three_products_are_those_of_rounded_operands(forward, backward, bias):
    holder = nn.Sequential(nn.Linear(6, 4, bias=bias))
    inner = holder[0]
    Simulated(forward=forward, backward=backward).apply(holder)
    x, up = normal(5, 6).requires_grad_(), normal(5, 4, seed=1)
    y = holder(x)
    y.backward(up)

    def rounded(tensor, name):
        return tensor.detach() if name is None else quantize(tensor, NumberFormat.parse(name))

    xq, wq, gq = rounded(x, forward), rounded(inner.weight, forward), rounded(up, backward)
    assert torch.equal(y, F.linear(xq, wq) + (inner.bias if bias else 0))
    assert torch.allclose(x.grad, gq @ wq, atol=1e-6)
    assert torch.allclose(inner.weight.grad, gq.T @ xq, atol=1e-6)
    assert not bias or torch.allclose(inner.bias.grad, up.sum(0)), "sums stay in full precision"


def test_parameters_their_names_order_and_state_stay():
    net = model()
    before = dict(net.named_parameters())
    simulation = Simulated().apply(net)
    after = dict(net.named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    assert len(simulation.layers) == 14 and not any("embedding" in name for name in simulation.layers)
    fresh = model(1)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.embedding.weight, net.embedding.weight)


def test_wide_formats_change_nothing_and_narrow_ones_do():
    plain = gradients(model(), TOKENS)
    for name, same in (("E8M23", True), ("E8M3", False)):
        net = model()
        Simulated(forward=name, backward=name).apply(net)
        found = gradients(net, TOKENS)
        assert all(torch.allclose(found[key], plain[key], atol=1e-7) for key in plain) is same


def test_bf16_operands_are_those_of_a_bfloat16_product():
    """A product of bfloat16 operands, added in fp32: what E8M7 simulates."""
    x, linear = normal(3, 8), nn.Linear(8, 5, bias=False)
    holder = nn.Sequential(linear)
    Simulated(forward="bf16", backward=None).apply(holder)
    assert torch.equal(holder(x), x.bfloat16().float() @ linear.weight.bfloat16().float().T)


def test_chosen_layers_only():
    net = model()
    simulation = Simulated(layers=["blocks.0.*", "*.out"], except_layers=["*.down"]).apply(net)
    expected = {f"blocks.0.{name}" for name in ("attention.query", "attention.key", "attention.value", "attention.out",
                                                "feed_forward.gate", "feed_forward.up")} | {"blocks.1.attention.out"}
    assert set(simulation.layers) == expected
    assert {name for name, module in net.named_modules() if isinstance(module, SimulatedLinear)} == expected


def test_chosen_steps_only():
    net = model()
    plain = net(TOKENS)
    simulation = Simulated(forward="E8M1", first_step=3, end_step=5).apply(net)
    assert torch.equal(net(TOKENS), plain), "before the first step is known"
    rounds = []
    for step in range(7):
        simulation.at(step)
        rounds.append(not torch.equal(net(TOKENS), plain))
    assert rounds == [False, False, False, True, True, False, False]


def test_patterns_that_match_nothing_are_said():
    with pytest.raises(BadInput, match=r"'blocks\.7\.\*', but the model has no such linear module.*blocks\.0"):
        Simulated(layers=["blocks.7.*"]).apply(model())
    with pytest.raises(BadInput, match="leaves no linear module"):
        Simulated(except_layers=["*"]).apply(model())


@pytest.mark.parametrize(("fields", "message"), [
    ({"forward": "E8"}, "no number format"), ({"forward": None, "backward": None}, "rounds nothing"),
    ({"first_step": 5, "end_step": 5}, "beyond first_step"), ({"layer": ["*"]}, "did you mean 'layers'")])
def test_bad_fields_are_one_paragraph(fields, message):
    with pytest.raises(BadInput, match=message):
        parse(Simulated, fields, "pretrain.simulated")


def test_under_autocast_only_formats_that_the_product_holds():
    net = model()
    Simulated(forward="E8M3", backward="E8M3").apply(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.isfinite(gradient).all() for gradient in gradients(net, TOKENS).values())
    wide = model()
    Simulated(forward="fp16", backward="fp16").apply(wide)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(BadInput, match="precision: fp32"):
        wide(TOKENS)


@pytest.mark.parametrize("scaling", ["none", "tensor"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_zero_and_non_finite_inputs_and_gradients_pass_without_making_finite_ones_up(value, scaling):
    holder = nn.Sequential(nn.Linear(4, 3, bias=False))
    Simulated(forward="E4M3fn", backward="E5M2", overflow="infinite", scaling=scaling).apply(holder)
    x = torch.full((2, 4), value, requires_grad=True)
    holder(x).sum().backward()
    gradient = holder[0].weight.grad
    assert (gradient == 0).all() if value == 0 else not torch.isfinite(gradient).any()
    empty = torch.zeros(0, 4, requires_grad=True)
    holder(empty).sum().backward()
    assert empty.grad.shape == (0, 4)


def test_a_copy_rounds_as_its_original():
    net = model()
    Simulated(forward="E8M2").apply(net)
    assert torch.equal(copy.deepcopy(net)(TOKENS), net(TOKENS))
