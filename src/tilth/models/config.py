"""What a recipe says about a model: the base of every architecture's configuration, and the transformer's.

Sizes are in numbers of features, counts in parameters, costs in FLOPs (a multiply-add is two).
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from tilth.models.experts import Experts
from tilth.models.parametrization import MuP
from tilth.recipe import BadInput, Config

if TYPE_CHECKING:
    from tilth.models.transformer import Transformer

Pattern = Literal["causal", "prefix", "bidirectional"]


class ModelConfig(Config):
    """Base of the configurations of architectures; `kind` names one of `tilth.models.MODELS`."""

    kind: str

    def build(self) -> Any:
        """The module, its parameters not yet initialised."""
        raise NotImplementedError(f"{type(self).__name__} must say how it is built.")

    def parameters(self, embeddings: bool = True, active: bool = False) -> int:
        """Exact number of parameters, without building anything; `active`: only of those that one token uses."""
        raise NotImplementedError(f"{type(self).__name__} must say how many parameters it has.")

    def flops_per_token(self, length: int, training: bool = True) -> float:
        """FLOPs of matrix products for one token of a row of `length` tokens."""
        raise NotImplementedError(f"{type(self).__name__} must say what a token costs.")


class Sizes(NamedTuple):
    """The widths of a transformer with every default resolved."""

    vocabulary: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    memory_width: int


class TransformerConfig(ModelConfig):
    """One transformer: a causal decoder by default; prefix decoder, encoder or decoder with memory by `attention`
    and `cross_attention`.

    Left out, `heads` is one for each 64 of `width`, `kv_heads` is `heads`, `head_width` is width / heads,
    `feed_forward` is 8/3 of the width (swiglu; rounded up to a multiple of 64) or 4 times it (gelu), and `init_std` is
    sqrt(2 / (5 width)) (Nguyen and Salazar 2019, https://arxiv.org/abs/1910.05895; 0.02 at width 1000).
    `vocab_size` may stay None until the tokenizer is known; building needs it.
    """

    kind: str = "transformer"
    vocab_size: int | None = Field(None, ge=0, description="0: no table, for a model that is given embeddings")
    layers: int = Field(6, ge=1)
    width: int = Field(320, ge=1)
    heads: int | None = Field(None, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    head_width: int | None = Field(None, ge=1)
    feed_forward: int | None = Field(None, ge=1)
    activation: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = Field(1e-5, gt=0)
    positions: Literal["rope", "learned", "none"] = "rope"
    rope_theta: float = Field(10000.0, gt=0)
    context: int = Field(2048, ge=1, description="longest row, in positions")
    tied: bool = Field(True, description="the output matrix is the token embedding")
    biases: bool = Field(False, description="biases of linear maps, and of LayerNorm")
    qk_norm: bool = Field(False, description="RMSNorm of each head's queries and keys, before rope")
    attention: Pattern = "causal"
    cross_attention: bool = False
    memory_width: int | None = Field(None, ge=1, description="width of what cross-attention reads; default: width")
    init_std: float | None = Field(None, gt=0)
    init_depth_scale: bool = Field(True, description="divide the std of residual outputs by sqrt(residual branches)")
    mup: MuP | None = Field(None, description="muP instead of the standard parametrization")
    experts: Experts | None = Field(None, description="a mixture of experts as each block's feed-forward map")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        heads = self.heads or max(1, self.width // 64)
        if self.head_width is None and self.width % heads:
            raise ValueError(f"width {self.width} is not divisible by heads {heads}; change one of them, "
                             f"or give head_width")
        head_width = self.head_width or self.width // heads
        if self.positions == "rope" and head_width % 2:
            raise ValueError(f"rope rotates pairs of features, but head_width is {head_width}; make it even, "
                             f"or choose positions: learned or none")
        kv_heads = self.kv_heads or heads
        if heads % kv_heads:
            raise ValueError(f"heads {heads} is not divisible by kv_heads {kv_heads}; each key-value head serves "
                             f"the same number of query heads")
        if self.memory_width is not None and not self.cross_attention:
            raise ValueError("memory_width is set, but cross_attention is false; drop it, or set cross_attention: true")
        if self.mup is not None and self.experts is not None:
            raise ValueError("mup has no rule for a router, whose outputs do not grow with the width; drop mup or "
                             "experts")
        return self

    def sizes(self) -> Sizes:
        """The widths with defaults resolved; the vocabulary is 0 while it is unknown."""
        heads = self.heads or max(1, self.width // 64)
        default = -(-8 * self.width // (3 * 64)) * 64 if self.activation == "swiglu" else 4 * self.width
        return Sizes(self.vocab_size or 0, heads, self.kv_heads or heads, self.head_width or self.width // heads,
                     self.feed_forward or default, self.memory_width or self.width)

    def branches(self) -> int:
        """Residual branches of the whole stack: two a layer, three with cross-attention."""
        return self.layers * (3 if self.cross_attention else 2)

    def std(self, embedding: bool = False) -> float:
        """Standard deviation of the initial weights of hidden matrices, or of tables and the output matrix, which under
        muP keep that of the base width."""
        if self.mup is None:
            return self.init_std or (2 / (5 * self.width)) ** 0.5
        base = self.init_std or (2 / (5 * self.mup.base_width)) ** 0.5
        return base if embedding else base * (self.mup.base_width / self.width) ** 0.5

    def build(self) -> "Transformer":
        """The module on the default device, uninitialised: call `initialize(seed)` or load a state."""
        from tilth.models.transformer import Transformer
        if self.vocab_size is None:
            raise BadInput("`model.vocab_size` is not known yet: build the model after the tokenizer, or set it.")
        return Transformer(self)

    def parameters(self, embeddings: bool = True, active: bool = False) -> int:
        """Exact number of parameters. With `embeddings=False`, without what grows with the vocabulary or the context:
        token embedding, learned positions, output matrix (the N of most scaling laws). An unknown vocabulary is 0.
        `active`: of the experts, only as many as one token asks."""
        s = self.sizes()
        norm = self.width * (2 if self.norm == "layer" and self.biases else 1)
        block = self._attention_weights(s, self.width) + self._feed_forward_weights(s, active) + 2 * norm
        block += 2 * s.head_width if self.qk_norm else 0
        if self.biases:
            gates = 2 if self.activation == "swiglu" else 1
            block += (s.heads + 2 * s.kv_heads) * s.head_width + self.width
            block += sum(times * (gates * hidden + self.width) for times, hidden in self._maps(s, active))
        if self.cross_attention:
            block += self._attention_weights(s, s.memory_width) + norm + (2 * s.head_width if self.qk_norm else 0)
            block += (s.heads + 2 * s.kv_heads) * s.head_width + self.width if self.biases else 0
        tables = s.vocabulary * self.width * (1 if self.tied else 2)
        tables += self.context * self.width if self.positions == "learned" else 0
        return self.layers * block + norm + (tables if embeddings else 0)

    def flops_per_token(self, length: int, training: bool = True, memory: int = 0) -> float:
        """FLOPs of matrix products for one token of a row of `length`, reading `memory` positions if it cross-attends.

        Forward: 2 x (weights of all linear maps + width x vocabulary) + layers x 4 x heads x head_width x keys, where
        a token sees (length + 1) / 2 keys if attention is causal or prefix (counted as causal), else `length`. Of a
        mixture, the router and the experts that a token asks are counted, as if none were dropped.
        Training counts the backward pass as two forward passes: 3 x. Embedding look-ups, norms, softmax and biases
        are not counted; the key-value maps of a memory are spread over the row's tokens.
        """
        s = self.sizes()
        layer = 2.0 * (self._attention_weights(s, self.width) + self._feed_forward_weights(s, active=True))
        if self.cross_attention:
            layer += 4 * self.width * s.heads * s.head_width
            layer += 4 * s.memory_width * s.kv_heads * s.head_width * memory / length
        forward = self.layers * layer + self.score_flops(length, memory) + 2.0 * self.width * s.vocabulary
        return (3.0 if training else 1.0) * forward

    def score_flops(self, length: int, memory: int = 0) -> float:
        """The FLOPs of attention's own products, for one token in a forward pass: queries with keys, probabilities with
        values."""
        s = self.sizes()
        keys = float(length) if self.attention == "bidirectional" else (length + 1) / 2
        return self.layers * 4 * s.heads * s.head_width * (keys + (memory if self.cross_attention else 0))

    def _attention_weights(self, s: Sizes, source: int) -> int:
        return 2 * self.width * s.heads * s.head_width + 2 * source * s.kv_heads * s.head_width

    def _feed_forward_weights(self, s: Sizes, active: bool) -> int:
        matrices = 3 if self.activation == "swiglu" else 2
        router = self.width * self.experts.count if self.experts else 0
        return router + sum(times * matrices * self.width * hidden for times, hidden in self._maps(s, active))

    def _maps(self, s: Sizes, active: bool) -> list[tuple[int, int]]:
        """How many feed-forward maps of which hidden width a block has, or (`active`) a token goes through."""
        if self.experts is None:
            return [(1, s.feed_forward)]
        asked = self.experts.active if active else self.experts.count
        shared = [(1, self.experts.shared)] if self.experts.shared else []
        return [(asked, self.experts.hidden or s.feed_forward), *shared]
