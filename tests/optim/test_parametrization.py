"""muP: a coordinate check against the standard parametrization, its rates, and the fold into a standard model."""

import math

import pytest
import torch

from tilth.models import TransformerConfig, export_llama, import_llama, token_losses
from tilth.models.parametrization import fold
from tilth.optim import AdamW, Muon, group_parameters

WIDTHS = (64, 256)


def model(width=64, mup=True, **more):
    scale = {"base_width": 64, **more.pop("factors", {})}
    return TransformerConfig(vocab_size=19, layers=2, width=width, heads=width // 32, feed_forward=2 * width,
                             context=16, mup=scale if mup else None, **more).build().initialize(0)


def coordinates(width: int, mup: bool, config) -> dict[str, float]:
    """Root mean square of how far activations moved in four steps, by where they are."""
    module = model(width, mup)
    optimizer = config.build(group_parameters(module))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 19, (8, 17), generator=generator)

    def look():
        with torch.no_grad():
            hidden = module.hidden(tokens[:, :-1])
            stream = module.embedding(tokens[:, :-1]) * module.factors.embedding
            for block in module.blocks:
                stream = block(stream, seen, None)
            return {"stream": stream, "logits": module.head(hidden)}

    from tilth.models.attention import Sight
    seen = Sight(causal=True)
    before = look()
    for _ in range(4):
        token_losses(module.hidden(tokens[:, :-1]), module.output_weight, tokens[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: (value - before[name]).square().mean().sqrt().item() for name, value in look().items()}


def slope(values: list[float]) -> float:
    """Growth exponent with width, from the narrowest to the widest."""
    return math.log(values[-1] / values[0]) / math.log(WIDTHS[-1] / WIDTHS[0])


@pytest.mark.parametrize("config", [AdamW(lr=3e-3, weight_decay=0), Muon(lr=3e-3, weight_decay=0)],
                         ids=["adamw", "muon"])
def test_activations_move_the_same_at_every_width_under_mup_and_more_with_width_without(config):
    slopes = {}
    for mup in (True, False):
        found = [coordinates(width, mup, config) for width in WIDTHS]
        slopes[mup] = {name: slope([one[name] for one in found]) for name in found[0]}
    for name, value in slopes[True].items():
        assert abs(value) < 0.25, (name, slopes)
        assert slopes[False][name] > 0.25, (name, slopes)


@pytest.mark.parametrize(("config", "expected"), [(AdamW(lr=0.01), 0.01 / 4), (Muon(lr=0.01), 0.01 / 2)])
def test_rates_of_hidden_matrices_fall_with_width_and_the_others_stay(config, expected):
    groups = {group["name"]: group for group in config.build(group_parameters(model(256))).param_groups}
    assert groups["matrices"]["peak_lr"] == pytest.approx(expected)
    assert groups["embeddings"]["peak_lr"] == groups["vectors"]["peak_lr"] == 0.01
    plain = config.build(group_parameters(model(256, mup=False))).param_groups
    assert all(group["peak_lr"] == 0.01 for group in plain)


def test_deviations_of_hidden_matrices_fall_with_the_root_of_width_and_tables_keep_theirs():
    for width in WIDTHS:
        module = model(width, init_depth_scale=False)
        base = (2 / (5 * 64)) ** 0.5
        query = module.blocks[0].attention.query.weight
        assert query.std().item() == pytest.approx(base * (64 / width) ** 0.5, rel=0.05)
        assert module.embedding.weight.std().item() == pytest.approx(base, rel=0.1)
    narrow, plain = model(64), model(64, mup=False)
    for one, other in zip(narrow.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other), "at the base width both begin alike"


VARIANTS = [{}, {"tied": False}, {"biases": True, "norm": "layer", "positions": "learned", "activation": "gelu"},
            {"qk_norm": True, "kv_heads": 1}]


@pytest.mark.parametrize("more", VARIANTS)
def test_fold_gives_an_equal_standard_model(more):
    torch.manual_seed(0)
    module = model(128, factors={"embedding": 12.0, "residual": 0.26}, **more)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens = torch.randint(0, 19, (3, 9))
    folded = fold(module)
    assert folded.config.mup is None
    torch.testing.assert_close(folded(tokens), module(tokens), rtol=1e-4, atol=1e-5)
    assert fold(folded) is folded


def test_a_mup_model_exports_as_a_llama_of_the_same_function(tmp_path):
    module = model(128, factors={"embedding": 12.0, "residual": 0.25})
    export_llama(module, tmp_path)
    again = import_llama(tmp_path)[1]
    tokens = torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(tokens), module(tokens), rtol=1e-4, atol=1e-5)
