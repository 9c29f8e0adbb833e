"""The transformer: embeddings, blocks, output matrix.

Shapes: B rows, L positions, D width, V vocabulary, S positions of a memory, M its width.

Parameters of each block: `attention.{query,key,value}.weight` (heads x head_width, D), `attention.out.weight`
(D, heads x head_width), `feed_forward.{gate,up}.weight` (F, D), `feed_forward.down.weight` (D, F), two norms; with
experts `feed_forward.router.weight` (C, D) and the maps `feed_forward.experts.{c}` and `feed_forward.shared`; once:
`embedding.weight` (V, D), `position_embedding.weight` (context, D) if learned, `norm`, `unembedding.weight` (V, D)
unless tied.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from tilth.models.attention import Sight, sight, sight_of_part
from tilth.models.blocks import Block
from tilth.models.cache import Cache, no_grad_needed
from tilth.models.config import TransformerConfig
from tilth.models.context import ContextGroup
from tilth.models.experts import MixtureOfExperts
from tilth.models.norms import build_norm
from tilth.models.parametrization import factors
from tilth.models.remember import Remember
from tilth.models.rotary import rotation
from tilth.recipe import BadInput


class Transformer(nn.Module):
    """`model(tokens) -> logits (B, L, V)`; see `hidden` for the other arguments.

    `blocks`, `spread_methods`, `tensor_plan`, `remember` and `context_group` are what `tilth.train.parallel` asks of a
    model. context_group: the processes over which the positions of each row are divided; then every argument of shape
    (B, L) holds this process's part.
    """

    context_group: ContextGroup | None = None

    spread_methods = ("hidden",)

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.factors = factors(config)
        sizes = config.sizes()
        self.embedding = nn.Embedding(sizes.vocabulary, config.width)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = build_norm(config)
        if not config.tied:
            self.unembedding = nn.Linear(config.width, sizes.vocabulary, bias=False)

    def forward(self, tokens: Tensor | None = None, *, embeddings: Tensor | None = None,
                segments: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None,
                prefix: Tensor | None = None, memory: Tensor | None = None,
                memory_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V); arguments as in `hidden`."""
        return self.head(self.hidden(tokens, embeddings=embeddings, segments=segments, positions=positions, cache=cache,
                                     prefix=prefix, memory=memory, memory_mask=memory_mask))

    def hidden(self, tokens: Tensor | None = None, *, embeddings: Tensor | None = None,
               segments: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None,
               prefix: Tensor | None = None, memory: Tensor | None = None,
               memory_mask: Tensor | None = None) -> Tensor:
        """The normalised residual stream after the last block, (B, L, D).

        tokens: (B, L) int64, or instead `embeddings`: (B, L, D) float, for continuous inputs.
        segments: (B, L) int64, the unit of each position (-1: padding); no attention across units, whose positions
        stand side by side. None: one segment a row.
        positions: (B, L) int64; None: counted along the row, after what the cache holds.
        cache: keys and values of earlier positions, extended in place; rows of equal length, no segments, no gradient.
        prefix: (B, L) bool, for `attention: prefix`: the first positions of each segment, which see each other.
        memory: (B, S, M), for `cross_attention: true`; memory_mask: (B, L, S) or (B, 1, S) bool, true where read.
        Raises ValueError for arguments that do not fit together, BadInput for rows longer than `context`.
        """
        no_grad_needed(cache)
        x_BLD = self._embed(tokens, embeddings)
        past = cache.length if cache is not None else 0
        group = self.context_group
        whole = past + x_BLD.shape[1] * (group.world if group else 1)
        if whole > self.config.context:
            raise BadInput(f"A row of {whole} positions is longer than the model's context of "
                           f"{self.config.context}; shorten the row, or set `model.context` higher.")
        self._check(segments, cache, memory)
        if positions is None:
            first = past + (group.start(x_BLD.shape[1]) if group else 0)
            positions = torch.arange(first, first + x_BLD.shape[1], device=x_BLD.device)[None]
        if self.config.positions == "learned":
            x_BLD = x_BLD + self.position_embedding(positions)
        if self.factors.embedding != 1 and tokens is not None:
            x_BLD = x_BLD * self.factors.embedding
        x_BLD = x_BLD.to(compute_dtype(x_BLD))
        if group is None:
            seen = sight(self.config.attention, segments, prefix, x_BLD.shape[1], past, x_BLD.device)
        else:
            seen = sight_of_part(self.config.attention, segments, prefix, x_BLD.shape[1], group, x_BLD.device)
        turn = None
        if self.config.positions == "rope":
            turn = rotation(positions, self.config.sizes().head_width, self.config.rope_theta, x_BLD.dtype)
        memory_seen = Sight(mask=None if memory_mask is None else memory_mask[:, None])
        for mixture in self._mixtures():
            mixture.ask_routed()
        used = segments >= 0 if segments is not None and self.config.experts is not None else None
        for block in self.blocks:
            x_BLD = block(x_BLD, seen, turn, cache, memory, memory_seen, used)
        if cache is not None:
            cache.advance(x_BLD.shape[1])
        x_BLD = self.norm(x_BLD)
        return x_BLD if self.factors.output == 1 else x_BLD * self.factors.output

    def head(self, hidden_BLD: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return nn.functional.linear(hidden_BLD, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix (V, D): the token embedding if tied."""
        return self.embedding.weight if self.config.tied else self.unembedding.weight

    def new_cache(self, capacity: int = 0) -> Cache:
        """An empty key-value cache, with room for `capacity` positions from the start."""
        return Cache(self.config.layers, capacity)

    @torch.no_grad()
    def initialize(self, seed: int) -> "Transformer":
        """Fill every parameter from (seed, its name) alone, so that neither order nor process nor device matters.

        Matrices and tables are normal with `config.std()`; the outputs of residual branches are smaller by
        sqrt(branches) if `init_depth_scale` (Radford et al. 2019); norms are one and biases zero.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = self.config.std(embedding="embedding" in name)
            if self.config.init_depth_scale and name.endswith(("attention.out.weight", "down.weight")):
                std /= self.config.branches() ** 0.5
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn.normal_(0.0, std, generator=named_generator(seed, name)))
        return self

    def penalties(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the last `hidden` adds to any objective, once: scaled terms of the loss, and figures to tell.

        Of experts: `balance_loss` and `router_z_loss`, sums over layers; `expert_load` (layers, C), the share of a
        layer's assignments that each expert got, and with a capacity `expert_dropped`, the share that none took.
        """
        routed = [one for mixture in self._mixtures() if (one := mixture.take_routed()) is not None]
        if not routed:
            return {}, {}
        terms = {"balance_loss": sum_of([one.balance for one in routed]),
                 "router_z_loss": sum_of([one.router_z for one in routed])}
        figures = {"expert_load": torch.stack([one.load for one in routed])}
        if self.config.experts is not None and self.config.experts.capacity is not None:
            figures["expert_dropped"] = sum_of([one.dropped for one in routed]) / len(routed)
        return terms, figures

    def rate_factors(self) -> dict[str, float]:
        """What the parametrization makes of the rates of parameter groups, by name."""
        mup = self.config.mup
        return {} if mup is None else {"matrices": mup.base_width / self.config.width}

    @property
    def remember(self) -> Remember:
        """What blocks keep for their backward pass."""
        return self._all_blocks()[0].remember

    @remember.setter
    def remember(self, remember: Remember) -> None:
        for block in self._all_blocks():
            block.remember = remember

    def tensor_plan(self, processes: int) -> list[tuple[nn.Module, dict[str, Any]]]:
        """Each block with the plan that splits its matrices over `processes`."""
        sizes = self.config.sizes()
        for name, size in (("heads", sizes.heads), ("kv_heads", sizes.kv_heads), ("feed_forward", sizes.feed_forward)):
            if size % processes:
                raise BadInput(f"`model.{name}` is {size}, which --tensor {processes} does not divide; choose another "
                               f"number of processes for each block, or other sizes.")
        if self.config.experts is not None:
            raise BadInput("`model.experts` is not split by --tensor; spread the experts' weights with --shard.")
        if self.config.qk_norm:
            raise BadInput("`model.qk_norm` norms each head with one shared weight, which --tensor would split; set it "
                           "to false, or train without --tensor.")
        return [(block, block.tensor_plan()) for block in self._all_blocks()]

    def _all_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _mixtures(self) -> list[MixtureOfExperts]:
        return [block.feed_forward for block in self._all_blocks() if isinstance(block.feed_forward, MixtureOfExperts)]

    def _embed(self, tokens: Tensor | None, embeddings: Tensor | None) -> Tensor:
        if (tokens is None) == (embeddings is None):
            raise ValueError("Give either tokens (B, L) or embeddings (B, L, D).")
        return self.embedding(tokens) if embeddings is None else embeddings

    def _check(self, segments: Tensor | None, cache: Cache | None, memory: Tensor | None) -> None:
        if cache is not None and (segments is not None or self.config.attention == "bidirectional"):
            raise ValueError("A key-value cache needs causal attention and rows of one segment each.")
        if (memory is not None) != self.config.cross_attention:
            raise ValueError("`memory` goes with `cross_attention: true`, and only with it.")


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type of the residual stream: autocast's where it is on (one cast here spares one at every matrix)."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def sum_of(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).sum()


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU that depends on the seed and the name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
