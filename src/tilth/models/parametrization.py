"""muP: what changes with width so that the best learning rate does not (Yang et al. 2022, arXiv 2203.03466; in the form
of Cerebras-GPT, Dey et al. 2023, arXiv 2304.03208, which the power scheduler uses).

With m = width / base_width, against the standard parametrization:

| part | change |
|---|---|
| embedding | output x `embedding` (of tokens); its rate and deviation do not depend on the width |
| hidden matrices | deviation / sqrt(m), rate / m (Muon, whose updates are orthogonal: rate / sqrt(m)) |
| attention | logits q k / head_width, not / sqrt(head_width) |
| residual branches | output x `residual` |
| output | logits / m |

`fold` turns a trained model into an equal standard one, so that export formats need to know nothing of this.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from pydantic import Field

from tilth.recipe import Config

if TYPE_CHECKING:
    from tilth.models.config import TransformerConfig
    from tilth.models.transformer import Transformer


class MuP(Config):
    """`base_width`: the width at which rates were tuned; there, muP and the standard differ only in the attention."""

    base_width: int = Field(256, ge=1)
    embedding: float = Field(1.0, gt=0, description="factor of the embedding's output (12 in the power scheduler)")
    residual: float = Field(1.0, gt=0, description="factor of each residual branch (0.22 to 0.28 there)")


class Factors(NamedTuple):
    """What a forward pass multiplies; all 1 in the standard parametrization. query: beside 1 / sqrt(head_width)."""

    embedding: float = 1.0
    residual: float = 1.0
    query: float = 1.0
    output: float = 1.0


def factors(config: "TransformerConfig") -> Factors:
    mup = config.mup
    if mup is None:
        return Factors()
    return Factors(mup.embedding, mup.residual, config.sizes().head_width**-0.5, mup.base_width / config.width)


@torch.no_grad()
def fold(model: "Transformer") -> "Transformer":
    """An equal model in the standard parametrization: its factors multiplied into weights (the model itself where it
    has none). The output's factor goes into the last norm, since a tied matrix is read at both ends."""
    if model.config.mup is None:
        return model
    f = factors(model.config)
    output = f.output / (f.embedding if model.config.tied else 1.0)
    by_ending = {"attention.out.weight": f.residual, "attention.out.bias": f.residual, "down.weight": f.residual,
                 "down.bias": f.residual}
    query = ("query_norm.weight",) if model.config.qk_norm else ("query.weight", "query.bias")
    by_ending |= dict.fromkeys(query, f.query)
    whole = {"embedding.weight": f.embedding, "position_embedding.weight": f.embedding, "norm.weight": output,
             "norm.bias": output}
    standard = model.config.model_copy(update={"mup": None}).build()
    state = {}
    for name, tensor in model.state_dict().items():
        factor = whole.get(name, next((value for end, value in by_ending.items() if name.endswith(end)), 1.0))
        state[name] = tensor * factor
    standard.load_state_dict(state)
    return standard.train(model.training)
