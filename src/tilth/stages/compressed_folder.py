"""A compressed model as a folder: config.json, model.safetensors, tokenizer.json; exact accounting of its bits.

`model.safetensors` holds the parts of each compressed matrix as LAYER.PART (`tilth.precision.matrix`), and everything
else (embedding, norms, biases) in one 16-bit or 32-bit type. Layers that read the same input have one order of columns;
it is stored once, and `config.json` says whose it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tilth.data.tokenizer import Tokenizer
from tilth.models import MODELS, ModelConfig
from tilth.precision.linear import CompressedLinear, compressed_layers, replace
from tilth.precision.matrix import PARTS, CompressedMatrix, Layout, expected_bytes
from tilth.precision.weights import Method, MethodChoice
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_json, writing_folder
from tilth.recipe.frame import Config, one_of, parse

FORMAT = "tilth-compressed"
RestType = Literal["float16", "bfloat16", "float32"]


class StoredLayer(Config):
    """One compressed layer: its layout, its outliers, and the layer that its order of columns is stored with (None: in
    their own order)."""

    layout: Layout
    outliers: int = Field(ge=0)
    order_of: str | None = None


class StoredCompressed(Config):
    """The config.json of a compressed folder."""

    format: str
    version: int
    model: one_of(ModelConfig, MODELS)  # type: ignore[valid-type]
    method: MethodChoice  # type: ignore[valid-type]
    rest: RestType
    layers: dict[str, StoredLayer]
    bits: dict[str, Any]


def save_compressed(folder: Path, model: Any, tokenizer: Tokenizer | None, method: Method,
                    rest: RestType = "float16") -> dict[str, Any]:
    """Write the folder, whole or not at all; returns the accounting (`count_bits`).

    Raises BadInput where a tensor that is not compressed does not fit the type `rest`.
    """
    layers = compressed_layers(model)
    owners = order_owners(layers)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        if layer in layers and part in PARTS:
            if part != "order" or owners[layer] == layer:
                tensors[name] = tensor.cpu().contiguous()
        else:
            tensors[name] = _rest(name, tensor, rest)
    stored = {name: StoredLayer(layout=layer.layout, outliers=layer.matrix.outliers, order_of=owners[name])
              for name, layer in layers.items()}
    bits = count_bits(layers, tensors)
    config = StoredCompressed(format=FORMAT, version=1, model=model.config, method=method, rest=rest, layers=stored,
                              bits=bits)
    with writing_folder(folder) as beside:
        write_json(beside / "config.json", config.model_dump(mode="json"))
        save_file(tensors, beside / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save(beside)
    return bits


def order_owners(layers: Mapping[str, CompressedLinear]) -> dict[str, str | None]:
    """For each layer the first one with the same order of columns; None where columns are in their own order."""
    owners: dict[str, str | None] = {}
    first: dict[bytes, str] = {}
    for name, layer in layers.items():
        order = layer.matrix.tensors.get("order")
        owners[name] = None if order is None else first.setdefault(order.cpu().numpy().tobytes(), name)
    return owners


def _rest(name: str, tensor: Tensor, rest: RestType) -> Tensor:
    cast = tensor.detach().cpu().to(getattr(torch, rest)).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise BadInput(f"{name} has values that {rest} does not hold; keep what is not compressed in another type "
                       f"(--rest bfloat16 or float32).")
    return cast


def count_bits(layers: Mapping[str, CompressedLinear], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Exact bits of what is stored: `per_weight` over the compressed matrices (codes, statistics, outliers with columns
    and row pointers, orders; all of it), `per_parameter` over all parameters, and the bytes of each part."""
    parts: dict[str, int] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        key = part if layer in layers and part in PARTS else "rest"
        parts[key] = parts.get(key, 0) + tensor.numel() * tensor.element_size()
    weights = sum(layer.layout.rows * layer.layout.columns for layer in layers.values())
    others = sum(tensor.numel() for name, tensor in tensors.items()
                 if not (name.rpartition(".")[0] in layers and name.rpartition(".")[2] in PARTS))
    compressed = sum(size for part, size in parts.items() if part != "rest")
    outliers = sum(layer.matrix.outliers for layer in layers.values())
    return {"per_weight": 8 * compressed / max(weights, 1), "outlier_share": outliers / max(weights, 1),
            "per_parameter": 8 * (compressed + parts.get("rest", 0)) / max(weights + others, 1), "weights": weights,
            "parameters": weights + others, "bytes": parts}


def load_compressed(folder: Path) -> Any:
    """The model (what is not compressed in float32, evaluation mode), its compressed layers still packed.

    Raises BadInput where the weights are missing, misshapen or not those that config.json describes.
    """
    stored = parse(StoredCompressed, read_json(folder / "config.json"), str(folder / "config.json"))
    if stored.format != FORMAT or stored.version != 1:
        raise BadInput(f"{folder} is of format {stored.format}, version {stored.version}; this version of Tilth reads "
                       f"{FORMAT}, version 1.")
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder / 'model.safetensors'} cannot be read: {error}.") from error
    with torch.device("meta"):
        model = stored.model.build()
    for name, layer in stored.layers.items():
        parts: dict[str, Tensor] = {part: tensors[f"{name}.{part}"] for part in PARTS
                                    if part != "order" and f"{name}.{part}" in tensors}
        if layer.order_of is not None:
            parts["order"] = tensors.get(f"{layer.order_of}.order", torch.empty(0, dtype=torch.uint8))
        matrix = CompressedMatrix(layer.layout, parts)
        _check(folder, name, matrix, layer)
        bias = tensors.get(f"{name}.bias")
        replace(model, name, CompressedLinear(matrix, None if bias is None else bias.float()))
    wanted = {name: tensor for name, tensor in model.state_dict().items()
              if not (name.rpartition(".")[0] in stored.layers and name.rpartition(".")[2] in PARTS)}
    for name, tensor in wanted.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise BadInput(f"{folder} lacks {name} of shape {tuple(tensor.shape)}, which its config.json asks for.")
    rest = {name: tensors[name].float() for name in wanted}
    model.load_state_dict(rest, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def _check(folder: Path, name: str, matrix: CompressedMatrix, layer: StoredLayer) -> None:
    expected = expected_bytes(matrix.layout, layer.outliers, layer.order_of is not None)
    found = matrix.bytes()
    if layer.outliers and "outlier_columns" in found:
        expected["outlier_columns"] = layer.outliers * matrix.tensors["outlier_columns"].element_size()
    ends = matrix.tensors.get("outlier_rows")
    whole = ends is None or (int(ends[0]), int(ends[-1])) == (0, layer.outliers)
    columns = [matrix.tensors[part].long() for part in ("outlier_columns", "order") if part in matrix.tensors]
    inside = all(not len(one) or int(one.max()) < matrix.layout.columns for one in columns)
    if found != expected or not whole or not inside:
        raise BadInput(f"{folder}: the stored parts of {name} do not fit its layout in config.json ({found} bytes, "
                       f"expected {expected}); the folder is damaged or was edited.")
