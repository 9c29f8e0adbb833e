"""Llama and Mixtral folders of Hugging Face `transformers`: written to load there, read from disk to train on.

Weights are safetensors, nothing is unpickled, and whatever would change the function of the model without a place in
the other format is refused by name. Both formats rotate the same halves, so no matrix is permuted.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tilth.models.config import TransformerConfig
from tilth.models.llama_config import config_from_llama, llama_config
from tilth.models.parametrization import fold
from tilth.models.transformer import Transformer
from tilth.recipe import BadInput
from tilth.recipe.files import fsync_folder, read_json, write_bytes, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Ours to theirs; {} stands for the layer, then the expert.
NAMES = {
    "embedding": "model.embed_tokens",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.query": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.key": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.value": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.feed_forward_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.feed_forward.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.feed_forward.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.feed_forward.down": "model.layers.{}.mlp.down_proj",
    "blocks.{}.feed_forward.router": "model.layers.{}.block_sparse_moe.gate",
    "blocks.{}.feed_forward.experts.{}.gate": "model.layers.{}.block_sparse_moe.experts.{}.w1",
    "blocks.{}.feed_forward.experts.{}.up": "model.layers.{}.block_sparse_moe.experts.{}.w3",
    "blocks.{}.feed_forward.experts.{}.down": "model.layers.{}.block_sparse_moe.experts.{}.w2",
    "norm": "model.norm",
    "unembedding": "lm_head",
}


def llama_name(name: str) -> str:
    """`blocks.3.attention.query.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    module, _, leaf = name.rpartition(".")
    return NAMES[re.sub(r"\d+", "{}", module)].format(*re.findall(r"\d+", module)) + "." + leaf


def export_llama(model: Transformer, folder: Path | str, *, tokenizer_json_path: Path | str | None = None,
                 end_of_text: str | None = None, dtype: str = "float32") -> None:
    """Write a folder that `AutoModelForCausalLM` and, given a tokenizer, `AutoTokenizer` load: a Llama, or, of a model
    with experts, a Mixtral.

    `end_of_text`: the token that begins and ends documents, as text; it must be in the tokenizer.
    `dtype`: float32, bfloat16 or float16, the type of the stored weights. Factors of muP are folded into weights.
    Raises BadInput, naming the field, if a model is neither; nothing is written then.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype is '{dtype}'; choose one of {', '.join(DTYPES)}.")
    model = fold(model)
    tokenizer = None if tokenizer_json_path is None else read_json(tokenizer_json_path)
    end_id = None if end_of_text is None else token_id(tokenizer, end_of_text, tokenizer_json_path)
    config = llama_config(model.config, dtype, end_id)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None and tokenizer_json_path is not None:
        _check_tokenizer(tokenizer, model.config, tokenizer_json_path)
        write_tokenizer(folder, Path(tokenizer_json_path), end_of_text, model.config.context)
    _write_weights(folder / "model.safetensors",
                   {llama_name(name): tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
                    for name, tensor in model.state_dict().items()})
    ends = {} if end_id is None else {"bos_token_id": end_id, "eos_token_id": end_id}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    write_json(folder / "config.json", config)


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Text to id of a `tokenizer.json`, added tokens included."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram models list (piece, score)
        vocabulary = {piece[0]: index for index, piece in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}


def token_id(tokenizer: Mapping[str, Any] | None, text: str, path: Path | str | None) -> int:
    if tokenizer is None:
        raise BadInput(f"end_of_text is '{text}', but no tokenizer was given to look it up in.")
    vocabulary = _vocabulary(tokenizer)
    if text not in vocabulary:
        raise BadInput(f"The tokenizer {path} has no token '{text}'; give its end-of-text token.")
    return vocabulary[text]


def _check_tokenizer(tokenizer: Mapping[str, Any], config: TransformerConfig, path: Path | str) -> None:
    highest = max(_vocabulary(tokenizer).values(), default=-1)
    if highest >= config.sizes().vocabulary:
        raise BadInput(f"The tokenizer {path} has ids up to {highest}, but the model's vocab_size is "
                       f"{config.sizes().vocabulary}; it belongs to another model.")


def write_tokenizer(folder: Path, source: Path, end_of_text: str | None, context: int) -> None:
    special = {} if end_of_text is None else {"bos_token": end_of_text, "eos_token": end_of_text}
    write_bytes(folder / "tokenizer.json", source.read_bytes())
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special,
                                                  "model_max_length": context, "clean_up_tokenization_spaces": False})


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    beside = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, beside, metadata={"format": "pt"})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        fsync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def import_llama(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> tuple[TransformerConfig, Transformer]:
    """The configuration and the model, weights loaded, of a Llama-family folder on disk.

    Reads `config.json` and `model.safetensors` or the shards of its index; weights become `dtype` (float32 holds the
    16-bit types exactly). Raises BadInput for anything that Tilth's transformer cannot express, by its key, for
    missing, unexpected or misshapen weights, and for pickled ones.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json; give the folder of a Llama-family model.")
    config = config_from_llama(read_json(folder / "config.json"), folder / "config.json")
    with torch.device("meta"):
        model = config.build()
    model = model.to_empty(device="cpu").to(dtype)
    _load(model, folder)
    return config, model


@torch.no_grad()
def _load(model: Transformer, folder: Path) -> None:
    wanted = {llama_name(name): tensor for name, tensor in model.state_dict().items()}
    for file, name, tensor in _stored(weight_files(folder)):
        # Old folders store the rotary frequencies, and some store the tied output matrix a second time.
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and model.config.tied):
            continue
        target = wanted.pop(name, None)
        if target is None:
            raise BadInput(f"{file} holds the weight {name}, which a Llama of this config.json does not have.")
        if target.shape != tensor.shape:
            raise BadInput(f"{file}: {name} has shape {tuple(tensor.shape)}, but config.json says "
                           f"{tuple(target.shape)}.")
        target.copy_(tensor)
    if wanted:
        raise BadInput(f"{folder} lacks {len(wanted)} weights that its config.json asks for, {min(wanted)} first.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; BadInput if there are none or they are pickles."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        bad = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if bad or not names:
            raise BadInput(f"{index} names {bad[0] if bad else 'no file'}; shards are .safetensors files beside it.")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BadInput(f"{folder} lacks {missing[0]}, which {index.name} names; download it again.")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise BadInput(f"{folder} holds its weights only as a pickle ({pickles[0]}), which can run code when read, so "
                       "Tilth does not. Convert it where you trust it: load it with transformers and call "
                       "model.save_pretrained(FOLDER), which writes model.safetensors.")
    raise BadInput(f"{folder} has no model.safetensors (nor an index of shards).")


def _stored(files: Iterable[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a dict)
                    yield file, name, shard.get_tensor(name)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise BadInput(f"{file} is not a whole safetensors file: {error}. Download it again.") from error
