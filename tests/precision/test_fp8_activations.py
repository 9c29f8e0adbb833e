"""FP8 products and stored activations: what they compute, what they keep, and which models can have them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tilth.models import TransformerConfig, token_losses
from tilth.precision import fp8
from tilth.precision.activations import Linear, has_products, kept_in_fp8, linear, product, scaled_mm, use_mode
from tilth.precision.fp8 import E4M3, E5M2, Scaled, dequantize, quantize_groups, quantize_tensor
from tilth.recipe import BadInput
from tilth.train.device import SavedBytes, autocast, base_dtype, matmul_peak, mode_of, resolve_precision

CPU = torch.device("cpu")


def model(**more):
    config = {"vocab_size": 64, "layers": 2, "width": 64, "heads": 2, "feed_forward": 96, "context": 64, **more}
    return TransformerConfig(**config).build().initialize(0)


def saved(module, run):
    """Bytes that wait for the backward pass, weights left out."""
    with SavedBytes({p.untyped_storage().data_ptr() for p in module.parameters()}) as found:
        out = run()
    return found.bytes, out


def test_a_layer_multiplies_rounded_inputs_weights_and_gradients():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((2, 5, 32), (48, 32), (48,)))
    y, grad = linear(x, weight, bias), torch.randn(2, 5, 48)
    x_q, w_q, g_q = (dequantize(quantize_tensor(one.detach(), dtype)) for one, dtype in
                     ((x, E4M3), (weight, E4M3), (grad, E5M2)))
    torch.testing.assert_close(y, F.linear(x_q, w_q, bias))
    found = torch.autograd.grad(y, (x, weight, bias), grad)
    torch.testing.assert_close(found[0], g_q @ w_q)
    torch.testing.assert_close(found[1], g_q.flatten(0, 1).t() @ x_q.flatten(0, 1))
    torch.testing.assert_close(found[2], grad.sum((0, 1)))


def test_the_call_of_the_devices_products_equals_the_emulation():
    """`torch._scaled_mm` on the CPU, called as on a GPU: forward, and both gradients' layouts; 20 rows, not 16."""
    torch.manual_seed(0)
    x, w, g = quantize_tensor(torch.randn(20, 32)), quantize_tensor(torch.randn(48, 32)), quantize_tensor(
        torch.randn(20, 48), E5M2)
    assert not has_products(CPU)
    turned = [Scaled(one.codes.t(), one.scale) for one in (w, g, x)]
    for a, b in ((x, w), (g, turned[0]), (turned[1], turned[2])):
        torch.testing.assert_close(scaled_mm(a, b, torch.float32), product(a, b, torch.float32), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_norm_is_that_at_the_stored_input():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 40, requires_grad=True), torch.randn(40, requires_grad=True)
    y = kept_in_fp8("coat", lambda x, w: F.rms_norm(x, (40,), w), (x,), weight)
    assert torch.equal(y, F.rms_norm(x, (40,), weight))  # the forward pass is exact
    rounded = dequantize(quantize_groups(x.detach())).requires_grad_()
    grad = torch.randn(3, 40)
    found = torch.autograd.grad(y, (x, weight), grad)
    expected = torch.autograd.grad(F.rms_norm(rounded, (40,), weight), (rounded, weight), grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    plain = kept_in_fp8("fp8", lambda x: x * 2, (x,))
    assert torch.equal(torch.autograd.grad(plain.sum(), x)[0], torch.full((3, 40), 2.0))


@pytest.mark.parametrize("more", [{}, {"activation": "gelu", "norm": "layer", "biases": True, "positions": "learned"},
                                  {"qk_norm": True, "kv_heads": 1}], ids=["llama", "gpt", "grouped"])
@pytest.mark.parametrize("mode", ["fp8", "coat"])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_a_transformer_in_fp8_stays_near_the_plain_one(mode, more, low):
    tokens = torch.randint(0, 64, (2, 48), generator=torch.Generator().manual_seed(0))
    plain, ours = model(**more), model(**more)
    use_mode(ours, mode)
    losses, gradients = [], []
    for one in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = token_losses(one.hidden(tokens[:, :-1]), one.output_weight, tokens[:, 1:]).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in one.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[0] != losses[1]
    assert F.cosine_similarity(*gradients, dim=0) > 0.97
    with torch.no_grad():  # the same forward pass where nothing is kept
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            again = token_losses(ours.hidden(tokens[:, :-1]), ours.output_weight, tokens[:, 1:]).mean()
        assert again.item() == losses[1]
    use_mode(ours, "plain")
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        assert token_losses(ours.hidden(tokens[:, :-1]), ours.output_weight, tokens[:, 1:]).mean().item() == losses[0]


def test_what_a_feed_forward_keeps_is_what_the_method_says():
    """Per token, h features and f hidden: norm input h + scales, norm output h, gate and up f + scales, product f."""
    h, f, tokens = 64, 96, 32
    block = model().blocks[0]
    x = torch.randn(1, tokens, h, requires_grad=True)
    branch = nn.ModuleList([block.feed_forward_norm, block.feed_forward])
    sizes = {}
    for mode in ("plain", "fp8", "coat"):
        use_mode(branch, mode)
        sizes[mode], _ = saved(block, lambda: block.feed_forward(block.feed_forward_norm(x)))
    scales = 2 * 4  # one of the norm's output, one of the product
    assert sizes["coat"] == tokens * (9 * h // 8 + h + 2 * 9 * f // 8 + f) + scales
    # Plain float32: the norm keeps its input and a number a token, then its output; gate, silu, up and the product.
    assert sizes["plain"] == tokens * 4 * (h + 1 + h + 4 * f)
    assert sizes["coat"] < sizes["fp8"] < sizes["plain"]


def test_query_key_and_value_keep_their_input_once():
    layers = nn.ModuleList(Linear(32, 16) for _ in range(3))
    use_mode(layers, "fp8")
    x = torch.randn(4, 32, requires_grad=True)
    bytes_three, _ = saved(layers, lambda: sum(layer(x * 1) for layer in layers))
    doubled = x * 1
    bytes_one, _ = saved(layers, lambda: sum(layer(doubled) for layer in layers))
    assert bytes_three == 3 * (4 * 32 + 4) and bytes_one == 4 * 32 + 4
    before = layers[0](doubled)
    with torch.no_grad():
        doubled.mul_(3)  # changed in place: its codes are no longer its codes
    assert not torch.equal(layers[0](doubled), before)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_zero_rows(rows):
    layer = Linear(32, 16)
    use_mode(layer, "coat")
    x = torch.zeros(rows, 32, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape and not layer.weight.grad.any()


def test_activation_checkpointing_goes_with_fp8_layers():
    tokens = torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(0))
    found = []
    for remember in ("all", "inputs"):
        one = model()
        use_mode(one, "coat")
        one.remember = remember
        token_losses(one.hidden(tokens), one.output_weight, tokens).mean().backward()
        found.append([p.grad for p in one.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_models_that_do_not_fit_are_refused_by_name():
    with pytest.raises(BadInput, match=r"feed_forward\.gate' is 40 x 64"):
        use_mode(model(feed_forward=40), "coat")
    with pytest.raises(BadInput, match="transformer blocks"):
        use_mode(nn.Linear(16, 16), "fp8")
    use_mode(nn.Linear(5, 3), "plain")


def test_a_precision_is_one_word():
    assert resolve_precision("coat", CPU) == "coat" and resolve_precision("fp8", CPU) == "fp8"
    assert [mode_of(name) for name in ("fp32", "bf16", "fp8", "coat")] == ["plain", "plain", "fp8", "coat"]
    assert base_dtype("fp32", CPU) is torch.float32 and base_dtype("bf16", CPU) is torch.bfloat16
    with autocast("coat", CPU):
        assert torch.is_autocast_enabled("cpu") == (base_dtype("coat", CPU) is torch.bfloat16)
    assert matmul_peak(CPU, "coat", seconds=0.1) > 0


def test_a_gpu_without_fp8_products_refuses_fp8_alone(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    old = torch.device("cuda")
    with pytest.raises(BadInput, match="gains nothing on this GPU"):
        resolve_precision("fp8", old)
    assert resolve_precision("coat", old) == "coat"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_precision("fp8", old) == "fp8" and has_products(old)


def test_formats_and_quantizers_agree_on_the_largest_number():
    assert all(torch.finfo(dtype).max == top for dtype, top in fp8.LARGEST.items())
