"""Two towers: shapes, what padding changes (nothing), what a pair costs."""

import pytest
import torch

from tilth.models.config import TransformerConfig
from tilth.models.two_tower import TwoTowerConfig
from tilth.recipe import BadInput, parse

CONFIG = TwoTowerConfig(image_shape=(8, 12, 3), vocab_size=20, caption_length=6, joint=16)


def inputs(rows=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    held = torch.arange(6)[None] < torch.tensor([[2], [6], [4]])
    return (torch.randint(0, 256, (rows, 8, 12, 3), dtype=torch.uint8, generator=rng),
            torch.randint(1, 20, (rows, 6), generator=rng), held)


def test_both_sides_have_length_one_and_logits_are_their_scaled_products():
    model = CONFIG.build().initialize(0)
    pixels, tokens, held = inputs()
    images, texts = model.images(pixels), model.texts(tokens, held)
    assert images.shape == texts.shape == (3, 16)
    assert torch.allclose(images.norm(dim=1), torch.ones(3)) and torch.allclose(texts.norm(dim=1), torch.ones(3))
    assert torch.allclose(model(pixels, tokens, held), images @ texts.T / 0.07, rtol=1e-4)


def test_padding_changes_nothing():
    model = CONFIG.build().initialize(0)
    _, tokens, held = inputs()
    other = torch.where(held, tokens, 7)
    assert torch.allclose(model.texts(tokens, held), model.texts(other, held), atol=1e-6)
    short = torch.stack([tokens[0]]), torch.stack([held[0]])
    assert torch.allclose(model.texts(tokens, held)[0], model.texts(*short)[0], atol=1e-6)


def test_a_patch_is_a_square_of_neighbouring_pixels():
    model = CONFIG.build().initialize(0)
    pixels = torch.zeros(1, 8, 12, 3, dtype=torch.uint8)
    seen = []
    model.read_in.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    pixels[0, 4:8, 8:12] = 255  # the last of 2 x 3 patches
    model.images(pixels)
    assert (seen[0][0, :5] == -1).all() and (seen[0][0, 5] == 1).all()


def test_parameters_are_counted():
    assert sum(one.numel() for one in CONFIG.build().parameters()) == CONFIG.parameters()
    maps = sum(one.numel() for name, one in CONFIG.build().named_parameters()
               if one.ndim == 2 and "embedding" not in name and "_out" not in name)
    attention = 3 * 2 * 2 * (4 * 64 * 6) * 6  # both towers, two layers, six positions that see six
    assert CONFIG.flops_per_row() == pytest.approx(6 * 6 * maps + attention + 6 * 128 * 16), "six positions a tower"


def test_the_scale_is_learned_and_bounded():
    model = CONFIG.build().initialize(0)
    assert model.scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.log_scale.fill_(10.0)
    assert model.scale().item() == 100


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="does not divide an image of 8 x 12"):
        CONFIG.model_copy(update={"patch": 5}).build()
    with pytest.raises(BadInput, match="not known yet"):
        TwoTowerConfig().build()
    with pytest.raises(BadInput, match="reads images of shape"):
        CONFIG.build().images(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(BadInput, match="attention to bidirectional"):
        parse(TwoTowerConfig, {"text": TransformerConfig().model_dump()})
