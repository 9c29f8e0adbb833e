"""The frame of typed configuration: models with known keys only, choices by `kind`, errors that name the key.

A room declares its choices as a mapping from the name a recipe uses to a class, or to "package.module:Class" where
importing the class early would be wasteful. Whatever the mapping holds, a recipe may also name a class outside the
package the same way; it must derive from the choice's base class.
"""

import importlib
import types
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, SerializeAsAny, ValidationError
from pydantic_core import core_schema

from tilth.recipe.errors import BadInput


class Config(BaseModel):
    """Base of everything a recipe can set: keyword only, unknown keys forbidden."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=False)


class OneOf:
    """Marks a field whose value is one of several classes, picked by its key `kind`; use through `one_of`."""

    def __init__(self, base: type[Config], known: Mapping[str, "type[Config] | str"]):
        self.base, self.known = base, known

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        check = core_schema.is_instance_schema(self.base)
        return core_schema.no_info_before_validator_function(self._coerce, check, serialization=core_schema.
            plain_serializer_function_ser_schema(self._dump))

    def _coerce(self, value: Any) -> Any:
        return value if isinstance(value, Config) else parse(self.resolve(value, ""), as_mapping(value), "")

    def _dump(self, value: Config) -> dict[str, Any]:
        """Plain data that `parse` turns into an equal value: a class from outside is named by its place."""
        data, dotted = value.model_dump(mode="json"), f"{type(value).__module__}:{type(value).__qualname__}"
        known = self.known.get(data.get("kind", ""))
        return data if known in (type(value), dotted) else {**data, "kind": dotted}

    def resolve(self, value: Any, path: str) -> type[Config]:
        """The class that `value["kind"]` names; BadInput with the nearest name if there is none."""
        kind = value if isinstance(value, str) else as_mapping(value, path).get("kind")
        if kind is None:
            default = self.base.model_fields.get("kind")
            kind = default.default if default is not None and isinstance(default.default, str) else None
        if kind in (None, ""):
            raise BadInput(f"`{path}` needs a `kind`: one of {', '.join(self.known)}, or package.module:Class.")
        if not isinstance(kind, str):
            raise BadInput(f"`{join(path, 'kind')}` must be a name, not {kind!r}: one of {', '.join(self.known)}, or "
                           f"package.module:Class.")
        target = self.known.get(kind)
        if target is None and ":" not in kind:
            raise BadInput(f"`{join(path, 'kind')}` is '{kind}', which is not known{nearest(kind, self.known)} "
                           f"Choose one of {', '.join(self.known)}, or name a class as package.module:Class.")
        return self._import(target or kind, path) if not isinstance(target, type) else target

    def _import(self, dotted: str, path: str) -> type[Config]:
        module, _, name = dotted.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise BadInput(f"`{join(path, 'kind')}` names {dotted}, which cannot be imported: {error}.") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise BadInput(f"`{join(path, 'kind')}` names {dotted}, which does not derive from "
                           f"{self.base.__module__}.{self.base.__qualname__}.")
        return found


def one_of(base: type[Config], known: Mapping[str, "type[Config] | str"]) -> Any:
    """The annotation of a field that holds one of `known` (or an outside class that derives from `base`)."""
    return Annotated[SerializeAsAny[base], OneOf(base, known)]  # type: ignore[valid-type, misc]


def as_mapping(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, str):
        return {"kind": value}
    if not isinstance(value, Mapping):
        raise BadInput(f"`{path}` must be a group of keys, not {value!r}.")
    return dict(value)


def nearest(word: str, known: Any) -> str:
    """' (did you mean X?).' when something is close, else '.'."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."


def parse(cls: type[Config], data: Mapping[str, Any], path: str = "") -> Any:
    """Build `cls` from plain data, children first, so that every error carries the whole path of its key."""
    values = dict(data)
    for key in values:
        if key not in cls.model_fields:
            raise BadInput(f"Unknown key `{join(path, str(key))}`{nearest(str(key), cls.model_fields)} "
                           f"Valid keys here: {', '.join(cls.model_fields)}.")
    for key in values:
        values[key] = _parse_value(_annotation(cls, key), _default_kind(cls, key, values[key]), join(path, key))
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = join(path, ".".join(str(part) for part in first["loc"]))
        given = "" if first["type"] == "missing" else f" (given: {str(first['input'])[:80]!r})"
        message = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"`{where or cls.__name__}`: {message}{given}.") from error


def _default_kind(cls: type[Config], key: str, value: Any) -> Any:
    """A group without `kind` is of the kind that the field has by default: `model: {layers: 2}`."""
    default = cls.model_fields[key].get_default(call_default_factory=False)
    kind = getattr(default, "kind", None)
    if isinstance(value, Mapping) and "kind" not in value and isinstance(default, Config) and kind:
        return {"kind": kind, **value}
    return value


def _annotation(cls: type[Config], key: str) -> Any:
    field = cls.model_fields[key]
    marks = [mark for mark in field.metadata if isinstance(mark, OneOf)]
    return marks[0] if marks else field.annotation


def _parse_value(annotation: Any, value: Any, path: str) -> Any:
    """Recurse into configs, choices, lists and dicts of them; leave every other value to pydantic."""
    origin, args = get_origin(annotation), get_args(annotation)
    if value is None or isinstance(value, BaseModel):
        return value
    if origin is Annotated:
        marks = [mark for mark in args[1:] if isinstance(mark, OneOf)]
        return _parse_value(marks[0] if marks else args[0], value, path)
    if isinstance(annotation, OneOf):
        return parse(annotation.resolve(value, path), as_mapping(value, path), path)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return parse(annotation, as_mapping(value, path), path)
    if origin in (Union, types.UnionType):
        configs = [arg for arg in args if get_origin(arg) is Annotated
                   or (isinstance(arg, type) and issubclass(arg, Config))]
        containers = [arg for arg in args if get_origin(arg) in (list, dict)]
        if isinstance(value, Mapping) and configs:
            return _parse_value(configs[0], value, path)
        return _parse_value(containers[0], value, path) if containers else value
    if origin is list and isinstance(value, list):
        return [_parse_value(args[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {key: _parse_value(args[1], item, join(path, str(key))) for key, item in value.items()}
    return value


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key
