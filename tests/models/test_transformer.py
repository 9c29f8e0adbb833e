"""Properties of the transformer: counts, initialisation, causality, isolation, prefix, memory, derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tilth.models import MODELS, Transformer, TransformerConfig
from tilth.models.attention import run_lengths
from tilth.models.norms import rms_norm
from tilth.recipe import BadInput, parse

SMALL = {"vocab_size": 50, "layers": 2, "width": 32, "heads": 4, "context": 64}


def small(**changes) -> Transformer:
    return TransformerConfig(**{**SMALL, **changes}).build().initialize(0)


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


configs = st.builds(
    TransformerConfig, vocab_size=st.integers(1, 40), layers=st.integers(1, 3), width=st.sampled_from([16, 32]),
    heads=st.sampled_from([2, 4]), kv_heads=st.sampled_from([None, 1, 2]), head_width=st.sampled_from([None, 6]),
    feed_forward=st.sampled_from([None, 24]), activation=st.sampled_from(["swiglu", "gelu"]),
    norm=st.sampled_from(["rms", "layer"]), positions=st.sampled_from(["rope", "learned", "none"]),
    context=st.integers(1, 9), tied=st.booleans(), biases=st.booleans(), qk_norm=st.booleans(),
    cross_attention=st.booleans())


@given(configs)
@settings(max_examples=60, deadline=None)
def test_parameters_are_counted_without_building(config):
    with torch.device("meta"):
        model = config.build()
    assert sum(p.numel() for p in model.parameters()) == config.parameters()
    tables = [p for name, p in model.named_parameters() if name.split(".")[0].endswith("embedding")]
    assert config.parameters(embeddings=False) == config.parameters() - sum(p.numel() for p in tables)


def test_flops_are_what_the_profiler_counts():
    model, length = small(kv_heads=2, positions="learned"), 16
    # The counter knows the matrix products of the plain backend, not the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens(1, length), segments=torch.arange(length)[None] // length)
    config = model.config
    scored = 4 * config.layers * config.width  # FLOPs of a query with one key
    full = config.flops_per_token(length, training=False) + scored * (length - (length + 1) / 2)
    assert counter.get_total_flops() == pytest.approx(full * length)
    assert config.flops_per_token(length) == 3 * config.flops_per_token(length, training=False)


def test_initialisation_depends_on_seed_and_name_only():
    one, again, other = (TransformerConfig(**SMALL).build().initialize(seed) for seed in (1, 1, 2))
    deeper = TransformerConfig(**{**SMALL, "layers": 3, "init_depth_scale": False}).build().initialize(1)
    same = dict(again.named_parameters())
    assert all(torch.equal(p, same[name]) for name, p in one.named_parameters())
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    assert torch.equal(one.blocks[1].attention.query.weight, deeper.blocks[1].attention.query.weight)
    ratio = one.blocks[0].feed_forward.down.weight.std() / deeper.blocks[0].feed_forward.down.weight.std()
    assert ratio.item() == pytest.approx(0.5)


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
def test_later_tokens_change_nothing_earlier(positions):
    model, a = small(positions=positions, kv_heads=2, qk_norm=True), tokens(2, 20)
    b = torch.cat((a[:, :12], tokens(2, 8, seed=1)), 1)
    assert close(model(a)[:, :12], model(b)[:, :12]) and not close(model(a)[:, 12:], model(b)[:, 12:])


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
@pytest.mark.parametrize("pattern", ["causal", "bidirectional"])
@pytest.mark.parametrize("lengths", [(24, 17, 20), (3, 30, 1, 2, 4)], ids=["each run alone", "one mask"])
def test_a_packed_row_is_its_documents_alone(positions, pattern, lengths):
    model, row = small(positions=positions, attention=pattern, biases=True, norm="layer"), tokens(2, sum(lengths))
    segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    segments[-1] = -1
    packed = model(row, segments=segments.expand(2, -1), positions=torch.cat([torch.arange(n) for n in lengths])[None])
    start = 0
    for n in lengths[:-1]:
        assert close(packed[:, start:start + n], model(row[:, start:start + n]))
        start += n
    assert packed.isfinite().all()


def test_gradients_of_runs_equal_those_of_a_mask(monkeypatch):
    model, row = small(kv_heads=2), tokens(2, 64)
    segments = torch.arange(64).expand(2, 64) // 30
    def gradients():
        model.zero_grad()
        model(row, segments=segments).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]
    runs = gradients()
    monkeypatch.setattr("tilth.models.attention.run_lengths", lambda segments: (1,) * segments.numel())
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(runs, gradients(), strict=True))


@given(st.lists(st.lists(st.integers(-1, 2), min_size=4, max_size=4), min_size=1, max_size=3))
def test_runs_cover_every_position(rows):
    segments = torch.tensor(rows)
    flat = torch.cat([segments.flatten()[a:a + 1].expand(n) for a, n in _starts(run_lengths(segments))])
    assert torch.equal(flat, segments.flatten())


def _starts(lengths):
    return [(sum(lengths[:i]), n) for i, n in enumerate(lengths)]


def test_a_prefix_sees_itself_and_nothing_later():
    model, a = small(attention="prefix"), tokens(1, 20)
    prefix = (torch.arange(20) < 6)[None]
    changed = a.clone()
    changed[0, 5] = (a[0, 5] + 1) % 50
    later = a.clone()
    later[0, 6] = (a[0, 6] + 1) % 50
    base = model(a, prefix=prefix)
    assert not close(base[:, :5], model(changed, prefix=prefix)[:, :5])
    assert close(base[:, :6], model(later, prefix=prefix)[:, :6])
    with pytest.raises(ValueError, match="prefix"):
        model(a)


def test_encoder_and_decoder_from_the_same_class():
    encoder = small(attention="bidirectional")
    decoder = small(cross_attention=True, memory_width=32)
    source, target = tokens(2, 9), tokens(2, 7, seed=1)
    memory = encoder.hidden(source)
    out = decoder(target, memory=memory)
    assert out.shape == (2, 7, 50)
    assert close(decoder(target[:, :4], memory=memory), out[:, :4])
    assert not close(decoder(target, memory=memory.flip(0)), out)
    mask = (torch.arange(9) < 5).expand(2, 1, 9)
    assert close(decoder(target, memory=memory, memory_mask=mask), decoder(target, memory=memory[:, :5]))
    with pytest.raises(ValueError, match="cross_attention"):
        decoder(target)


def test_continuous_inputs_take_the_place_of_tokens():
    model, a = small(), tokens(2, 8)
    assert torch.equal(model(a), model(embeddings=model.embedding(a)))
    with pytest.raises(ValueError, match="either"):
        model()


def test_bfloat16_autocast_keeps_the_residual_stream_short():
    model, a = small(), tokens(2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(a)
        assert hidden.dtype == torch.bfloat16
        assert torch.allclose(model.head(hidden).float(), model(a).float())
    assert torch.allclose(hidden.float(), model.hidden(a), atol=0.15)


def test_rms_norm_derivatives_of_first_and_second_order():
    x = torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True)
    weight = torch.rand(8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))


def test_compiled_model_equals_eager_graph():
    model, a = small(), tokens(1, 8)
    assert close(torch.compile(model, backend="eager")(a), model(a))


@pytest.mark.parametrize("changes, names", [
    ({"width": 50, "heads": 4}, "width 50 is not divisible by heads 4"),
    ({"heads": 4, "kv_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
    ({"width": 12, "heads": 4}, "head_width is 3"),
    ({"memory_width": 8}, "cross_attention"),
    ({"layer": 3}, "did you mean 'layers'"),
])
def test_sizes_that_do_not_fit_are_refused_by_name(changes, names):
    with pytest.raises(BadInput, match=names):
        parse(MODELS["transformer"], changes)


def test_what_cannot_run_says_why():
    with pytest.raises(BadInput, match="vocab_size"):
        TransformerConfig().build()
    with pytest.raises(BadInput, match="context of 64"):
        small()(tokens(1, 65))
    with pytest.raises(ValueError, match="without gradients"):
        model = small()
        model(tokens(1, 4), cache=model.new_cache())
