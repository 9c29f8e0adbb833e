"""Text from a decoder, token by token, out of its key-value cache. Shapes: L positions, V vocabulary."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from tilth.models.cache import Cache
from tilth.models.transformer import Transformer
from tilth.recipe import BadInput


def generate(model: Transformer, tokens: Sequence[int], *, max_tokens: int = 256, temperature: float = 1.0,
             top_k: int | None = None, top_p: float | None = None, seed: int = 0,
             stop: Collection[int] = ()) -> Iterator[int]:
    """Yield token ids that continue `tokens`, at most `max_tokens`, ending before any id in `stop`.

    Temperature 0 takes the likeliest token; otherwise `top_k` keeps the k likeliest, `top_p` the fewest whose
    probability reaches p, and the same seed draws the same text. Past the model's context the window slides: the
    last half of the context is read again as if the text began there (dropping half at a time spreads that cost).
    A longer prompt keeps its last `context` tokens. Raises BadInput at once, before the first token is asked for.
    """
    _check(model, tokens, temperature, top_k, top_p)
    return _stream(model, list(tokens), max_tokens, temperature, top_k, top_p, seed, frozenset(stop))


def _check(model: Transformer, tokens: Sequence[int], temperature: float, top_k: int | None,
           top_p: float | None) -> None:
    if model.config.attention == "bidirectional" or model.config.cross_attention:
        raise BadInput("Only a decoder without memory generates text: this model has attention "
                       f"'{model.config.attention}', cross_attention {model.config.cross_attention}.")
    if not len(tokens):
        raise BadInput("The prompt has no tokens; start from the end-of-text token to generate from nothing.")
    highest, lowest = max(tokens), min(tokens)
    if lowest < 0 or highest >= model.config.sizes().vocabulary:
        raise BadInput(f"The prompt holds token {lowest if lowest < 0 else highest}, outside the model's vocabulary "
                       f"of {model.config.sizes().vocabulary}; the tokenizer belongs to another model.")
    if temperature < 0:
        raise BadInput(f"temperature is {temperature}; it must be 0 (greedy) or more.")
    if top_k is not None and top_k < 1:
        raise BadInput(f"top_k is {top_k}; it must be at least 1.")
    if top_p is not None and not 0 < top_p <= 1:
        raise BadInput(f"top_p is {top_p}; it must be above 0 and at most 1.")


def _stream(model: Transformer, text: list[int], max_tokens: int, temperature: float, top_k: int | None,
            top_p: float | None, seed: int, stop: frozenset[int]) -> Iterator[int]:
    generator = torch.Generator("cpu").manual_seed(seed)
    context = model.config.context
    text, cache = text[-context:], model.new_cache()
    new = text
    for _ in range(max_tokens):
        if cache.length + len(new) > context:
            text, cache = text[-max(1, context // 2):], model.new_cache()
            new = text
        chosen = pick(_next_logits(model, new, cache), temperature, top_k, top_p, generator)
        if chosen in stop:
            return
        yield chosen
        text, new = [*text, chosen], [chosen]


@torch.no_grad()
def _next_logits(model: Transformer, new: list[int], cache: Cache) -> Tensor:
    """Logits (V,) after the new tokens, on the CPU in float32."""
    tokens = torch.tensor([new], device=model.embedding.weight.device)
    prefix = None
    if model.config.attention == "prefix" and not cache.length:
        prefix = torch.ones_like(tokens, dtype=torch.bool)
    hidden = model.hidden(tokens, cache=cache, prefix=prefix)
    return model.head(hidden[:, -1:])[0, 0].float().cpu()


def pick(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None,
         generator: torch.Generator) -> int:
    """One token id drawn from `logits_V` (greedy at temperature 0; ties go to the lowest id)."""
    if temperature == 0:
        return int(logits_V.argmax())
    logits, order = (logits_V / temperature).sort(descending=True, stable=True)
    p = logits[:top_k].softmax(-1)
    if top_p is not None:
        # A token stays if those before it do not reach top_p yet: always the first, and the one that crosses.
        p = p * (p.cumsum(-1) - p < top_p)
    return int(order[torch.multinomial(p, 1, generator=generator)])
