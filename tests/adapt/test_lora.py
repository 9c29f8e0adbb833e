"""Adapters: they begin as nothing, only they learn, they merge into an equal plain model, and cost what is counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tilth.adapt.lora import Lora, LoraLinear, merged, training_flops
from tilth.models import TransformerConfig
from tilth.optim import AdamW, group_parameters
from tilth.precision.activations import use_mode
from tilth.recipe import BadInput

ROW = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))


def config(**more) -> TransformerConfig:
    return TransformerConfig(vocab_size=50, layers=2, width=32, heads=2, feed_forward=48, context=32, **more)


def adapted(lora: Lora | None = None, seed: int = 0, **more):
    model = config(**more).build().initialize(0)
    (lora or Lora(rank=4, alpha=8)).adapt(model, seed)
    return model


def learn(model, steps: int = 3):
    optimizer = AdamW(lr=1e-2).build(group_parameters(model))
    for _ in range(steps):
        logits = model(ROW)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ROW[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def plain(model, state):
    whole = model.config.build()
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("more", [{}, {"biases": True}, {"experts": {"count": 4, "active": 2}}])
def test_it_begins_as_the_model_it_adapts_and_merges_into_an_equal_one(more):
    base, model = config(**more).build().initialize(0), adapted(**more)
    assert torch.equal(model(ROW), base(ROW))
    learn(model)
    assert not torch.allclose(model(ROW), base(ROW), atol=1e-2)
    torch.testing.assert_close(plain(model, merged(model, model.state_dict()))(ROW), model(ROW), rtol=1e-4, atol=1e-5)


def test_only_adapters_learn_and_only_they_have_optimizer_states():
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = learn(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "adapter" in name} and len(moved) == 2 * 2 * 7
    held = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 4 * (
        4 * (32 + 32) + 3 * (32 + 48))


def test_the_first_gradient_is_that_of_the_formula():
    """With B = 0, dL/dB = scale g^T (x A^T) and dL/dA = 0."""
    layer = adapted().blocks[0].attention.query
    assert isinstance(layer, LoraLinear) and layer.scale == 2
    x, g = torch.randn(5, 32), torch.randn(5, 32)
    layer(x).backward(g)
    torch.testing.assert_close(layer.adapter_out.grad, 2 * g.T @ (x @ layer.adapter_in.T))
    assert not layer.adapter_in.grad.any() and layer.weight.grad is None


def test_initial_values_depend_on_seed_and_name_only():
    one, again, other = adapted(), adapted(Lora(rank=4, targets=["query"])), adapted(seed=1)
    first, second, third = (model.blocks[1].attention.query.adapter_in for model in (one, again, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    wide = adapted(Lora(rank=64, targets=["query"])).blocks[0].attention.query.adapter_in
    assert wide.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_targets_are_those_named_and_unknown_ones_are_refused():
    model = adapted(Lora(targets=["query", "down"]))
    names = {name for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    assert names == {f"blocks.{layer}.{name}" for layer in (0, 1) for name in ("attention.query", "feed_forward.down")}
    with pytest.raises(BadInput, match=r"names 'queries'.*did you mean 'query'\?"):
        adapted(Lora(targets=["queries"]))


def test_flops_are_those_of_frozen_products_and_adapters():
    """The profiler counts each product; those with a gradient that nobody needs are not run."""
    model = adapted(positions="none")
    rows, length = 2, 16
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(ROW, segments=torch.zeros_like(ROW)).sum().backward()
    scores = model.config.score_flops(length)
    causal = 3 * scores * (2 * length / (length + 1) - 1)  # the plain kernel multiplies what it masks, too
    first = 2 * 3 * 32 * 32 + 2 * 3 * 4 * 32  # of block 0, what would pass the gradient on to the embedding
    expected = training_flops(model, length) + causal - first
    assert counter.get_total_flops() == pytest.approx(rows * length * expected, rel=0.01)


def test_frozen_products_run_in_fp8():
    model = adapted(Lora(rank=4))
    before = model(ROW)
    use_mode(model, "fp8")
    low = model(ROW)
    assert not torch.equal(low, before) and torch.allclose(low, before, atol=0.2)
    low.sum().backward()
    assert model.blocks[0].attention.query.adapter_out.grad.any()
