"""What was decided about the package as a whole: its floors, its imports, its choices, the size of its files."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import tilth
from tilth.choices import CHOICES
from tilth.recipe import BadInput, Config, parse
from tilth.recipe.frame import OneOf, one_of

PACKAGE = Path(tilth.__file__).parent
ROOT = PACKAGE.parents[1]
FLOORS = ["recipe", "data", "curate", "precision", "models", "objectives", "optim", "train", "evaluate", "select",
          "adapt", "analyze", "report", "stages", "trial", "choices", "cli", "__main__"]
# Rooms that run on any machine with a GPU image, and the few packages they may import.
SPARE = ("train", "models", "precision", "optim")
SPARE_PACKAGES = {"torch", "numpy", "safetensors", "pydantic", "pydantic_core"}
# What a choice may say in its place: where the words are looked up, not here.
UNAVAILABLE = ("polars", "pyarrow", "tokenizers", "yaml", "jinja2", "typer", "rich", "fsspec", "transformers",
               "datasets", "tensorboard")

SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def room_of(module: str) -> str | None:
    """The room of a module of the package; None for `tilth` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, at_import_time: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of what a file imports; at_import_time: without what is inside functions or TYPE_CHECKING."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from tilth import data` imports the room `data`.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name, node.lineno) for name in inner if node.module == "tilth" and name in MODULES)
            yield node.module or "", node.lineno
        waiting.extend(ast.iter_child_nodes(node))


def rooms_in_source() -> set[str]:
    return {room for path in SOURCES if (room := room_of(module_of(path)))}


def test_every_room_has_its_floor():
    assert rooms_in_source() <= set(FLOORS)


def test_floors_are_those_of_the_design():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rooms = design.split("## Rooms")[1].split("Each room declares")[0]
    found = [name.strip("`/").removesuffix(".py") for row in re.findall(r"^\| (`[^|]+)\|", rooms, re.M)
             for name in re.findall(r"`[a-z_]+(?:/|\.py)`", row)]
    assert found == FLOORS[:-1]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_room_imports_only_from_lower_floors(path):
    own = room_of(module_of(path))
    if own is None:  # the package itself only says its version
        assert not [name for name, _ in imports(path) if name.startswith("tilth")]
        return
    higher = [f"line {line}: {name}" for name, line in imports(path) if (room := room_of(name)) and name.split(".")[0]
              == "tilth" and FLOORS.index(room) > FLOORS.index(own)]
    assert higher == []


def reachable(rooms: tuple[str, ...]) -> set[Path]:
    """The files of these rooms and all of the package that they import, at import time or later."""
    waiting = [path for path in SOURCES if room_of(module_of(path)) in rooms]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            # A module brings the __init__ of each package above it.
            names = {name for name, _ in imports(path)}
            names |= {name.rsplit(".", cut)[0] for name in names for cut in range(1, name.count(".") + 1)}
            waiting += [MODULES[name] for name in names if name in MODULES]
    return found


def test_spare_rooms_and_all_they_reach_import_only_the_few_packages():
    allowed = SPARE_PACKAGES | sys.stdlib_module_names | {"tilth"}
    assert {room_of(module_of(path)) for path in reachable(SPARE)} >= {"train", "recipe", "objectives"}
    wrong = [f"{module_of(path)}, line {line}: {name}" for path in sorted(reachable(SPARE))
             for name, line in imports(path) if name.split(".")[0] not in allowed]
    assert wrong == []


BLOCKER = """
import importlib, pkgutil, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError("not on this machine: " + name)
sys.meta_path.insert(0, Blocker())
for room in {rooms}:
    try:
        package = importlib.import_module("tilth." + room)
    except ModuleNotFoundError as error:
        if error.name != "tilth." + room:
            raise
        continue
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    print(room)
"""


def test_spare_rooms_import_where_the_other_packages_are_missing():
    script = BLOCKER.format(blocked=set(UNAVAILABLE), rooms=SPARE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"train", "models", "optim"} <= set(done.stdout.split())


def core_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in project["dependencies"]}
    imported = {"pyyaml": "yaml"}
    # pydantic and jinja2 are made of these.
    return {imported.get(name, name) for name in names} | {"pydantic_core", "markupsafe"}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_optional_is_imported_at_import_time(path):
    allowed = core_packages() | sys.stdlib_module_names | {"tilth"}
    wrong = [f"line {line}: {name}" for name, line in imports(path, at_import_time=True)
             if name.split(".")[0] not in allowed]
    assert wrong == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_file_is_longer_than_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_every_module_says_what_it_is():
    silent = [module_of(path) for path in SOURCES if tree(path).body and not ast.get_docstring(tree(path))]
    assert [name for name in silent if name != "tilth.__main__"] == []


# Choices.


def registries() -> dict[str, Mapping]:
    """Every mapping of the package from kinds to configurations, found rather than listed."""
    found: dict[int, tuple[str, Mapping]] = {}
    for info in pkgutil.walk_packages(tilth.__path__, "tilth."):
        if info.name == "tilth.__main__":
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, Mapping) and value and all(map(is_choice, value.values())):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


def is_choice(value: object) -> bool:
    return (isinstance(value, type) and issubclass(value, Config)) or (
        isinstance(value, str) and re.fullmatch(r"tilth(\.\w+)+:\w+", value) is not None)


REGISTRIES = registries()
KINDS = [(place, kind) for place, known in REGISTRIES.items() for kind in known]


def test_the_choices_of_every_room_are_listed():
    listed = {id(known) for known in CHOICES.values()}
    assert listed <= set(map(id, REGISTRIES.values())), "and the search for registries finds them all"
    named = ("INPUTS", "TOKENIZERS", "RULES", "ATTRIBUTES", "MIXTURES", "SELECTORS", "WEIGHERS", "MODELS", "OBJECTIVES",
             "OPTIMIZERS", "SCHEDULES", "STAGES", "TASKS")
    modules = [importlib.import_module(place.rsplit(".", 1)[0]) for place in REGISTRIES]
    for name in named:
        assert {id(vars(module)[name]) for module in modules if name in vars(module)} <= listed, name


@pytest.mark.parametrize(("place", "kind"), KINDS, ids=[f"{place}-{kind}" for place, kind in KINDS])
def test_every_kind_imports_is_documented_and_knows_its_name(place, kind):
    found = OneOf(Config, REGISTRIES[place]).resolve({"kind": kind}, place)
    assert found.model_fields["kind"].default == kind
    assert (found.__dict__.get("__doc__") or "").strip(), "a docstring of its own"
    assert all(field.isidentifier() for field in found.model_fields)


@pytest.mark.parametrize(("place", "kind"), KINDS, ids=[f"{place}-{kind}" for place, kind in KINDS])
def test_every_kind_that_needs_nothing_more_round_trips(place, kind):
    class Holder(Config):
        value: one_of(Config, REGISTRIES[place])

    found = OneOf(Config, REGISTRIES[place]).resolve({"kind": kind}, place)
    if any(field.is_required() for field in found.model_fields.values()):
        pytest.skip("has fields that must be given")
    try:
        holder = parse(Holder, {"value": {"kind": kind}})
    except BadInput as error:
        pytest.skip(f"asks for more: {error}")
    assert parse(Holder, holder.model_dump(mode="json")) == holder
