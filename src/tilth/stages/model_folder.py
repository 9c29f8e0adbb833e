"""A trained model as a folder of Tilth's own (config.json, model.safetensors, tokenizer.json), and finding one."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tilth.data.tokenizer import Tokenizer
from tilth.models import MODELS, ModelConfig, import_llama
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_json, writing_folder
from tilth.recipe.frame import Config, one_of, parse

FORMAT = "tilth-model"


class StoredModel(Config):
    """The config.json of a model folder."""

    format: str
    version: int
    model: one_of(ModelConfig, MODELS)  # type: ignore[valid-type]


def save_model(folder: Path, model: Any, tokenizer: Tokenizer | None, state: dict[str, Any] | None = None) -> None:
    """Write the folder, whole or not at all. A tied matrix is stored once. state: that of a model whose tensors are
    spread over processes, brought together."""
    with writing_folder(folder) as beside:
        write_json(beside / "config.json", {"format": FORMAT, "version": 1,
                                            "model": model.config.model_dump(mode="json")})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or model.state_dict()).items()}
        save_file(tensors, beside / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save(beside)


def find_model(path: str | Path) -> Path:
    """The model folder that a user's path means: itself, that of a stage, or that of a run's last stage with one."""
    path = Path(path)
    run = path / "manifest.json"
    stages = read_json(run).get("stages", {}) if run.is_file() else {}
    candidates = [path, path / "model", path / "compressed",
                  *(path / name / "model" for name in reversed(stages)), *sorted(path.glob("*/model"))]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return folder
    raise BadInput(f"{path} holds no model (no config.json in it, in model/ or in a stage's model/). Give a finished "
                   f"run, its pretrain stage, or a Llama-family folder.")


def load_model(path: str | Path) -> tuple[Any, Tokenizer]:
    """The model (float32, evaluation mode) and its tokenizer, from Tilth's folder (plain or compressed) or a
    Llama-family one."""
    from tilth.stages.compressed_folder import FORMAT as COMPRESSED
    from tilth.stages.compressed_folder import load_compressed
    folder = find_model(path)
    kind = read_json(folder / "config.json").get("format")
    if kind == COMPRESSED:
        model = load_compressed(folder)
    elif kind != FORMAT:
        model = import_llama(folder)[1]
    else:
        stored = parse(StoredModel, read_json(folder / "config.json"))
        model = stored.model.build()
        model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), Tokenizer.load(folder)
