"""A state (nested dicts, lists, numbers, text, tensors) as a JSON tree and named tensors, and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tilth.optim.spread import is_spread, local


def copied(tensor: Tensor) -> Tensor:
    """A copy that no later step changes: of a spread tensor spread alike, of any other on the CPU."""
    if is_spread(tensor):
        return tensor.detach().clone()
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def encode(value: Any, tensors: dict[str, Tensor], seen: dict[Any, str], path: str = "",
           take: Callable[[Tensor], Tensor] = copied) -> Any:
    """Plain JSON for `value`; tensors move to `tensors` under their path, the same storage only once (tied weights), as
    what `take` makes of them."""
    if isinstance(value, Tensor):
        part = local(value)
        alias = (part.data_ptr(), value.shape, value.stride(), value.dtype) if part.numel() else path
        name = seen.setdefault(alias, path)
        if name == path:
            while name in tensors:  # keys 1 and "1", or "a/b" and "a" then "b", lead to the same path
                name += "'"
            seen[alias] = name
            tensors[name] = take(value)
        return {"$tensor": name}
    if isinstance(value, dict):
        odd = [key for key in value if not (key is None or isinstance(key, bool | int | float | str))]
        if odd:
            raise TypeError(f"{path}: a state may have numbers and text as keys, not {odd[0]!r}")
        items = [[key, encode(item, tensors, seen, f"{path}/{key}", take)] for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and not any(key.startswith("$") for key in value):
            return dict(items)
        return {"$items": items}
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, seen, f"{path}/{index}", take) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a state may hold tensors, numbers, text, lists, tuples and dicts, not {type(value)}")


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(decode(item, tensors) for item in value["$tuple"])
    if "$items" in value:
        return {key: decode(item, tensors) for key, item in value["$items"]}
    return {key: decode(item, tensors) for key, item in value.items()}
