"""`config.json` of Llama and Mixtral folders and `TransformerConfig`, each from the other; the rest is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilth.models.config import TransformerConfig
from tilth.recipe import BadInput, parse

# The only values of our fields that a Llama has.
LLAMA_ONLY = {"activation": "swiglu", "norm": "rms", "positions": "rope", "qk_norm": False, "attention": "causal",
              "cross_attention": False}

# Beside them, the only values of a Mixtral; what its experts drop, and their penalties, matter in training alone.
MIXTRAL_ONLY = {"biases": False}

# Keys that change nothing about the function that the weights compute.
HARMLESS = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id",
            "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "pretraining_tp",
            "_name_or_path", "return_dict", "output_attentions", "output_hidden_states", "attn_implementation",
            "_attn_implementation", "_attn_implementation_autoset", "max_sequence_length", "unsloth_version",
            "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "is_encoder_decoder",
            "task_specific_params", "original_max_position_embeddings", "output_router_logits", "router_aux_loss_coef",
            "router_jitter_noise"}
READ = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_theta",
        "rope_parameters", "rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings", "sliding_window",
        "num_local_experts", "num_experts_per_tok"}

# What transformers assumes where config.json is silent.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048, "num_key_value_heads": None, "sliding_window": None},
    "MistralForCausalLM": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "MixtralForCausalLM": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": None,
                           "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2},
}


def llama_config(config: TransformerConfig, dtype: str, end_of_text: int | None) -> dict[str, Any]:
    """`config.json` for transformers 5 (`rope_parameters`, `dtype`) and 4 (`rope_theta`, `torch_dtype`)."""
    experts = config.experts
    family = "Llama" if experts is None else "Mixtral"
    for field, only in {**LLAMA_ONLY, **(MIXTRAL_ONLY if experts else {})}.items():
        value = getattr(config, field)
        if value != only:
            raise BadInput(f"This model cannot be exported as a {family}: its `{field}` is {value!r}, and a {family}'s "
                           f"is {only!r}. Train with `model.{field}={only}`, or keep it as a Tilth model.")
    if experts is not None and experts.shared is not None:
        raise BadInput("This model cannot be exported as a Mixtral, which has no expert for all tokens: its "
                       "`experts.shared` is set. Train without it, or keep it as a Tilth model.")
    s = config.sizes()
    mixture: dict[str, Any] = {} if experts is None else {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "intermediate_size": experts.hidden or s.feed_forward, "num_local_experts": experts.count,
        "num_experts_per_tok": experts.active, "router_aux_loss_coef": experts.balance, "output_router_logits": False,
        "router_jitter_noise": 0.0, "sliding_window": None}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": s.vocabulary, "hidden_size": config.width, "intermediate_size": s.feed_forward,
        "num_hidden_layers": config.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_width, "hidden_act": "silu", "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.context, "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.biases, "mlp_bias": config.biases, "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied, "initializer_range": config.std(), "pretraining_tp": 1, "use_cache": True,
        "bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None,
        "dtype": dtype, "torch_dtype": dtype, **mixture,
    }


def config_from_llama(values: Mapping[str, Any], path: Path) -> TransformerConfig:
    """Our configuration of a Llama's, a Mixtral's (with our own penalties for its experts), or a Mistral's without
    effective sliding window; BadInput names what differs."""
    family = _family(values, path)
    values = {**DEFAULTS[family], **values}
    experts = None if family != "MixtralForCausalLM" else {
        "count": values["num_local_experts"], "active": values["num_experts_per_tok"]}
    _check(values, path)
    return parse(TransformerConfig, {
        "vocab_size": _need(values, "vocab_size", path), "layers": _need(values, "num_hidden_layers", path),
        "width": _need(values, "hidden_size", path), "heads": _need(values, "num_attention_heads", path),
        "kv_heads": values["num_key_value_heads"], "head_width": values.get("head_dim"),
        "feed_forward": _need(values, "intermediate_size", path), "norm_epsilon": values.get("rms_norm_eps", 1e-6),
        "context": values["max_position_embeddings"], "rope_theta": _theta(values, path),
        "tied": values.get("tie_word_embeddings", False), "biases": values.get("attention_bias", False),
        "experts": experts,
    }, str(path))


def _family(values: Mapping[str, Any], path: Path) -> str:
    named = values.get("architectures") or []
    family = named[0] if len(named) == 1 else None
    if family not in DEFAULTS:
        raise BadInput(f"{path}: `architectures` is {named}; Tilth reads {', '.join(DEFAULTS)}.")
    return family


def _need(values: Mapping[str, Any], key: str, path: Path) -> Any:
    if values.get(key) is None:
        raise BadInput(f"{path} lacks `{key}`.")
    return values[key]


def _refuse(path: Path, key: str, value: Any, why: str) -> BadInput:
    return BadInput(f"{path}: `{key}` is {value!r}, but {why}; this model cannot be imported.")


def _check(values: Mapping[str, Any], path: Path) -> None:
    for key, value in values.items():
        # A key that is off changes nothing, whoever added it.
        if key not in READ | HARMLESS and value not in (None, False):
            raise _refuse(path, key, value, "Tilth's transformer has nothing like it")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _refuse(path, "hidden_act", values["hidden_act"], "the gated feed-forward map here uses silu")
    if bool(values.get("attention_bias")) != bool(values.get("mlp_bias")):
        raise _refuse(path, "attention_bias", values.get("attention_bias"),
                      f"`mlp_bias` is {values.get('mlp_bias')!r}, and here all linear maps have biases or none")
    if values.get("router_jitter_noise"):
        raise _refuse(path, "router_jitter_noise", values["router_jitter_noise"], "routers here see no noise")
    window = values["sliding_window"]
    if window is not None and window < values["max_position_embeddings"]:
        raise _refuse(path, "sliding_window", window, "attention here sees the whole row")


def _theta(values: Mapping[str, Any], path: Path) -> float:
    """The base of the rotary angles, after making sure that nothing else bends them."""
    theta = values.get("rope_theta", 10000.0)
    for key in ("rope_parameters", "rope_scaling"):
        rope = dict(values.get(key) or {})
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        theta = rope.pop("rope_theta", theta)
        rope = {name: value for name, value in rope.items() if not (name == "partial_rotary_factor" and value == 1)}
        if kind != "default" or rope:
            raise _refuse(path, key, values[key], "rotary positions here are the plain ones (rope_type default)")
    return theta
