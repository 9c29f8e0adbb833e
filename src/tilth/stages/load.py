"""Recipes from Python functions and YAML files, and `key=value` changes from the command line."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import tilth
from tilth.recipe.errors import BadInput
from tilth.recipe.frame import nearest, parse
from tilth.stages.stage import Recipe


def recipe_folders() -> list[Path]:
    """Where a recipe's name is looked up: ./recipes, the source tree's recipes/, those installed with the package."""
    package = Path(tilth.__file__).parent
    return [Path("recipes"), package.parents[1] / "recipes", package / "_recipes"]


def find_recipe(name: str) -> Path:
    """The file that `name` (a path, or the stem of a shipped recipe) stands for."""
    path = Path(name)
    if path.suffix in (".py", ".yaml", ".yml"):
        if path.is_file():
            return path
        raise BadInput(f"There is no recipe file {name}.")
    known: dict[str, Path] = {}
    for folder in reversed(recipe_folders()):
        known |= {file.stem: file for file in sorted(folder.glob("*")) if file.suffix in (".py", ".yaml", ".yml")}
    if name not in known:
        raise BadInput(f"There is no recipe '{name}'{nearest(name, known)} Known here: {', '.join(sorted(known))}; or "
                       f"give the path of a .py or .yaml file.")
    return known[name]


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe called `name`, with `key=value` changes such as `pretrain.optimizer.lr=1e-3` or `seed=3`."""
    data = _plain(find_recipe(name))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise BadInput(f"'{change}' is not of the form key=value (for example pretrain.optimizer.lr=1e-3).")
        set_key(data, key, _value(text, change))
    return parse(Recipe, data)


def _value(text: str, change: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"The value of '{change}' is not YAML: {error}.") from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place. The first part is a field of the recipe or the name of a stage; a changed `kind`
    drops the fields of the old kind."""
    key = str(key)
    parts = key.split(".")
    if parts[0] not in Recipe.model_fields:
        stages = data.get("stages") or {}
        if parts[0] not in stages:
            names = [*Recipe.model_fields, *stages]
            raise BadInput(f"Unknown key `{key}`: '{parts[0]}' is neither a stage nor a field of the recipe"
                           f"{nearest(parts[0], names)} There are {', '.join(names)}.")
        parts = ["stages", *parts]
    inner: Any = data
    for part in parts[:-1]:
        inner = _descend(inner, part, key)
    last = parts[-1]
    if last == "kind" and isinstance(inner, dict) and inner.get("kind") != value:
        inner.clear()
    if isinstance(inner, list):
        inner[_index(inner, last, key)] = value
    else:
        inner[last] = merge(inner.get(last), value)


def _descend(inner: Any, part: str, key: str) -> Any:
    if isinstance(inner, list):
        return inner[_index(inner, part, key)]
    if inner.get(part) is None:
        inner[part] = {}
    if not isinstance(inner[part], dict | list):
        raise BadInput(f"`{key}` goes into `{part}`, which is a plain value ({inner[part]!r}), not a group of keys.")
    return inner[part]


def _index(items: list[Any], part: str, key: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise BadInput(f"`{key}`: '{part}' is not one of the {len(items)} positions (0 first) of that list.")


def merge(old: Any, new: Any) -> Any:
    """Deep merge of mappings; anything else, and a mapping of another kind, replaces."""
    if not (isinstance(old, dict) and isinstance(new, Mapping)):
        return new
    if "kind" in new and new["kind"] != old.get("kind"):
        return dict(new)
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def _plain(path: Path) -> dict[str, Any]:
    return _from_python(path) if path.suffix == ".py" else _from_yaml(path)


def _from_python(path: Path) -> dict[str, Any]:
    """Run the file (recipes in Python are code) and call its function `recipe`."""
    spec = importlib.util.spec_from_file_location(f"tilth_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "recipe"):
        raise BadInput(f"{path} has no function `recipe`; define `def recipe() -> Recipe`.")
    return module.recipe().model_dump(mode="json")


def _from_yaml(path: Path) -> dict[str, Any]:
    """`base: NAME` plus changes; a stage's changes may stand under its name, with or without `stages:`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not YAML: {error}.") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path} must be a group of keys (name, stages, or base and changes).")
    base = data.pop("base", None)
    data.setdefault("name", path.stem)
    if base is None:
        return data
    whole = load_recipe(str(path.parent / base) if str(base).endswith((".py", ".yaml", ".yml")) else base)
    plain = whole.model_dump(mode="json")
    for key, value in (data.pop("stages", None) or {}).items():
        plain["stages"][key] = merge(plain["stages"].get(key), value)
    for key, value in data.items():
        set_key(plain, key, value)
    return plain
