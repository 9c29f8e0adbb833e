"""Generation from the cache equals generation without it, and the cache can be shared and cut."""

import pytest
import torch

from tilth.models import Cache, TransformerConfig, generate
from tilth.models.generate import pick
from tilth.recipe import BadInput

PROMPT = [3, 1, 4, 1, 5]


def small(**changes):
    fields = {"vocab_size": 50, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 40, "init_std": 0.3}
    return TransformerConfig(**{**fields, **changes}).build().initialize(0)


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
def test_cached_greedy_text_is_the_uncached_argmax(positions):
    model, text = small(positions=positions), list(PROMPT)
    with torch.no_grad():
        for _ in range(30):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    assert list(generate(model, PROMPT, max_tokens=30, temperature=0)) == text[len(PROMPT):]
    assert len(set(text)) > 3


def test_same_seed_same_text():
    model = small()
    texts = [list(generate(model, PROMPT, max_tokens=20, top_k=20, top_p=0.95, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_slides_past_the_context_and_stops_where_told():
    model = small(context=8)
    text = list(generate(model, [1] * 20, max_tokens=30, temperature=0))
    assert len(text) == 30
    ended = list(generate(model, [1] * 20, max_tokens=30, temperature=0, stop=[text[5]]))
    assert ended == text[:text.index(text[5])]


def test_gradients_stay_on_between_tokens():
    for _ in generate(small(), PROMPT, max_tokens=2):
        assert torch.is_grad_enabled()


def test_top_k_and_top_p_leave_the_likeliest():
    logits, generator = torch.tensor([0.0, 3.0, 2.0, 1.0]), torch.Generator().manual_seed(0)
    def drawn(**limits):
        return {pick(logits, 1.0, limits.get("top_k"), limits.get("top_p"), generator) for _ in range(200)}
    assert drawn() == {0, 1, 2, 3} and drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.5) == {1} and drawn(top_p=0.7) == {1, 2}


@torch.no_grad()
def test_a_prefix_run_once_serves_several_choices():
    model = small()
    prefix, choices = torch.tensor([PROMPT]), torch.tensor([[7, 8, 9], [10, 11, 12]])
    cache = model.new_cache()
    model(prefix, cache=cache)
    for picked in (choices, choices.flip(0)):
        shared = cache.expand(2)
        got = model(picked, cache=shared)
        whole = model(torch.cat((prefix.expand(2, -1), picked), 1))[:, len(PROMPT):]
        assert torch.allclose(got, whole, atol=1e-5)
        assert cache.length == len(PROMPT)
        again = model(picked.flip(0), cache=shared.truncate(len(PROMPT)))
        assert torch.allclose(again, whole.flip(0), atol=1e-5)


@torch.no_grad()
def test_a_cut_cache_forgets():
    model, cache = small(), Cache(2)
    model(torch.tensor([[*PROMPT, 9, 9]]), cache=cache)
    cache.truncate(len(PROMPT))
    got = model(torch.tensor([[7, 8]]), cache=cache)
    assert torch.allclose(got, model(torch.tensor([[*PROMPT, 7, 8]]))[:, len(PROMPT):], atol=1e-5)
    with pytest.raises(ValueError, match="cannot be cut"):
        cache.truncate(100)


@pytest.mark.parametrize("arguments, names", [
    ({"tokens": []}, "no tokens"), ({"tokens": [99]}, "token 99"), ({"temperature": -1}, "temperature"),
    ({"top_p": 0.0}, "top_p"), ({"top_k": 0}, "top_k"),
])
def test_arguments_are_checked_before_the_first_token(arguments, names):
    with pytest.raises(BadInput, match=names):
        generate(small(), arguments.pop("tokens", PROMPT), **arguments)
    with pytest.raises(BadInput, match="bidirectional"):
        generate(small(attention="bidirectional"), PROMPT)
