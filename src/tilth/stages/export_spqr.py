"""A compressed model in the layout that transformers' SpQR integration loads (`SpQRConfig`, package `spqr_quant`).

The integration holds 3-bit weights in groups of 16 x 16 with 3-bit statistics and nothing else; other settings are
refused by the field that differs. It runs on CUDA devices only. As released, transformers 5.24 and spqr_quant 0.2.0 do
not load any model: the first calls `create_placeholder`, which the second spells `create_placehodler`, and looks a
nested layer up among the model's direct children (KeyError). The layout itself is tested with both mended.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tilth.models.huggingface import llama_name, token_id, write_tokenizer
from tilth.models.llama_config import llama_config
from tilth.precision.linear import compressed_layers
from tilth.precision.matrix import PARTS
from tilth.precision.spqr_words import SIDE, misfit, to_words
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_json, writing_folder


def export_spqr(model: Any, folder: Path, tokenizer_json_path: Path, end_of_text: str) -> None:
    """Write the folder, whole or not at all; raises BadInput for what the layout or a Llama cannot hold."""
    layers = compressed_layers(model)
    if not layers:
        raise BadInput("--layout spqr writes a compressed model; make one with tilth compress MODEL --bits 3 -o DIR.")
    for name, layer in layers.items():
        reason = "it has a bias" if layer.bias is not None else misfit(layer.layout)
        if reason is not None:
            raise BadInput(f"transformers' SpQR layout does not hold {name}: {reason}. It takes 3 bits, group 16, "
                           f"tile_rows 16, 3-bit statistics (the defaults of tilth compress --bits 3), and no biases.")
    if getattr(model.config, "mup", None) is not None:
        raise BadInput("A model under muP has factors that this layout has no place for; compress its Llama export.")
    tokenizer = read_json(tokenizer_json_path)
    end_id = token_id(tokenizer, end_of_text, tokenizer_json_path)
    config = llama_config(model.config, "float16", end_id)
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, int] = {}
    for name, layer in layers.items():
        theirs = llama_name(f"{name}.weight").removesuffix(".weight")
        for part, words in to_words(layer.matrix).items():
            tensors[f"{theirs}.{part}"] = words.contiguous()
            shapes[f"{theirs}.{part}.shape"] = len(words)
    for name, tensor in model.state_dict().items():
        layer_name, _, part = name.rpartition(".")
        if not (layer_name in layers and part in PARTS):
            tensors[llama_name(name)] = tensor.to(torch.float16).contiguous()
    config["quantization_config"] = {"quant_method": "spqr", "bits": 3, "beta1": SIDE, "beta2": SIDE, "shapes": shapes,
                                     "modules_to_not_convert": ["lm_head"]}
    with writing_folder(folder) as beside:
        write_tokenizer(beside, tokenizer_json_path, end_of_text, model.config.context)
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
        write_json(beside / "generation_config.json", {"_from_model_config": True, "bos_token_id": end_id,
                                                       "eos_token_id": end_id})
        write_json(beside / "config.json", config)
