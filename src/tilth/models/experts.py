"""A mixture of experts in place of a block's feed-forward map (Shazeer et al. 2017, arXiv 1701.06538), routed as in
Mixtral (Jiang et al. 2024, arXiv 2401.04088).

A router scores each token against each expert, p = softmax(W x) in float32. The K likeliest experts answer, and their
answers are added with the weights p of the chosen, divided by their sum: y = sum_k p_k / (p_1 + .. + p_K) expert_k(x).
Probabilities are those over all experts before the choice, and are made to sum to 1 after it; with K = 1 the weight
is therefore 1, and the router learns from its penalties alone (Switch, which keeps p as the weight, is not offered).

Penalties, summed over layers, which an objective adds to its `terms`:

- balance (Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6): `balance` x C sum_c f_c P_c, with f_c the share of
  the assignments that expert c got before any were dropped, and P_c its mean probability. C sum f P is 1 where routing
  is uniform, and C where one expert takes all. (transformers' f counts tokens, so its loss is K times this.)
- z (Zoph et al. 2022, arXiv 2202.08906, equation 5): `router_z` x mean over tokens of logsumexp(W x)^2.

f, P and the mean are over the tokens of one micro-batch, padding left out.

Shapes: N tokens, D width, C experts, K experts of a token, A assignments (at most N K).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from tilth.recipe import Config

if TYPE_CHECKING:
    from tilth.models.config import TransformerConfig


class Experts(Config):
    """`count` experts, of which each token asks `active`.

    hidden: width of an expert (default: the model's `feed_forward`); shared: hidden width of one more map that every
    token goes through (Dai et al. 2024, arXiv 2401.06066), added without a weight. capacity: null drops nothing; a
    factor lets an expert take at most ceil(capacity x N K / C) of the N tokens of a micro-batch while training, those
    at earlier positions first, so that no token depends on a later one. A dropped assignment adds nothing. Outside
    training nothing is ever dropped.
    """

    count: int = Field(8, ge=2)
    active: int = Field(2, ge=1)
    hidden: int | None = Field(None, ge=1)
    shared: int | None = Field(None, ge=1)
    capacity: float | None = Field(None, gt=0)
    balance: float = Field(0.01, ge=0, description="factor of the load-balancing loss")
    router_z: float = Field(0.001, ge=0, description="factor of the router's z-loss")

    @model_validator(mode="after")
    def _enough(self) -> "Experts":
        if self.active > self.count:
            raise ValueError(f"active is {self.active}, but there are only {self.count} experts; lower it, or raise "
                             f"count")
        return self


class Routed(NamedTuple):
    """What a forward pass leaves for the objective: penalties with their gradient (scalars), the share of the
    assignments that went to each expert (C,), and the share that was dropped."""

    balance: Tensor
    router_z: Tensor
    load: Tensor
    dropped: Tensor


class Router(nn.Module):
    """Scores of experts, in float32 or wider whatever the type of x: a rounded score sends a token elsewhere. No layer
    of the common kind, so that no number format, compression or adapter touches it."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, x_ND: Tensor) -> Tensor:
        kind = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.to(kind), self.weight.to(kind))


class MixtureOfExperts(nn.Module):
    """The feed-forward map of a block; `expert(width, hidden, biases)` builds one.

    Tokens are sorted by expert, and each expert multiplies those that chose it in one piece; on a GPU that takes one
    synchronisation a layer. An expert that nobody chose runs on no tokens, so that its gradient is zero and not
    missing: processes that exchange gradients must all have the same ones.
    """

    def __init__(self, config: "TransformerConfig", expert: Callable[[int, int, bool], nn.Module]):
        super().__init__()
        assert config.experts is not None
        self.config = config.experts
        hidden = config.experts.hidden or config.sizes().feed_forward
        self.router = Router(config.width, config.experts.count)
        self.experts = nn.ModuleList(expert(config.width, hidden, config.biases) for _ in range(config.experts.count))
        if config.experts.shared is not None:
            self.shared = expert(config.width, config.experts.shared, config.biases)
        self._routed: Routed | None = None
        self._asked = False

    def forward(self, x_BLD: Tensor, used_BL: Tensor | None = None) -> Tensor:
        """(B, L, D); where `used_BL` is false (padding) no expert is asked."""
        x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
        used_N = None if used_BL is None else used_BL.reshape(-1)
        logits_NC = self.router(x_ND)
        p_NC = logits_NC.softmax(-1)
        p_NK, chosen_NK = p_NC.topk(self.config.active, dim=-1)
        weight_NK = p_NK / p_NK.sum(-1, keepdim=True)
        asked_A, sizes, wanted = self._dispatch(chosen_NK, used_N)
        routed = self._penalties(logits_NC, p_NC, used_N, wanted, sum(sizes))
        if self._asked:  # not when activation checkpointing runs this again
            self._routed, self._asked = routed, False
        token_A = asked_A // self.config.active
        pieces = x_ND.index_select(0, token_A).split(sizes)
        out_AD = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces, strict=True)])
        out_AD = out_AD * weight_NK.flatten().index_select(0, asked_A)[:, None].to(out_AD.dtype)
        y_ND = torch.zeros_like(x_ND, dtype=out_AD.dtype).index_add(0, token_A, out_AD)
        y_BLD = y_ND.view(x_BLD.shape)
        return y_BLD + self.shared(x_BLD) if self.config.shared is not None else y_BLD

    def ask_routed(self) -> None:
        """Have the next forward pass leave what `take_routed` gives."""
        self._routed, self._asked = None, True

    def take_routed(self) -> Routed | None:
        """What the forward pass left, once."""
        routed, self._routed = self._routed, None
        return routed

    @torch.no_grad()
    def _dispatch(self, chosen_NK: Tensor, used_N: Tensor | None) -> tuple[Tensor, list[int], list[int]]:
        """Assignments (token x K + choice) sorted by expert and within it by position (A,), how many each expert takes,
        and how many wanted it."""
        count, flat = self.config.count, chosen_NK.flatten()
        if used_N is not None:  # padding asks an expert behind the last, who is left out
            flat = torch.where(used_N[:, None], chosen_NK, count).flatten()
        order = flat.argsort(stable=True)
        wanted = torch.bincount(flat, minlength=count)[:count].tolist()
        if self.config.capacity is None or not self.training:
            return order[:sum(wanted)], wanted, wanted
        room = math.ceil(self.config.capacity * sum(wanted) / count)
        sizes = [min(size, room) for size in wanted]
        starts = [sum(wanted[:expert]) for expert in range(count)]
        return torch.cat([order[at:at + size] for at, size in zip(starts, sizes, strict=True)]), sizes, wanted

    def _penalties(self, logits_NC: Tensor, p_NC: Tensor, used_N: Tensor | None, wanted: list[int],
                   taken: int) -> Routed:
        asked = max(sum(wanted), 1)
        load_C = torch.tensor(wanted, dtype=p_NC.dtype, device=p_NC.device) / asked
        share_N = torch.ones_like(p_NC[:, 0]) if used_N is None else used_N.to(p_NC.dtype)
        share_N = share_N / share_N.sum().clamp(min=1)
        balance = self.config.count * (load_C * (share_N[:, None] * p_NC).sum(0)).sum()
        z = (share_N * logits_NC.logsumexp(-1).square()).sum()
        return Routed(self.config.balance * balance, self.config.router_z * z, load_C,
                      torch.tensor(1 - taken / asked if sum(wanted) else 0.0))
