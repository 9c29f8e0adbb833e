"""Loops compiled by Numba, where it is installed (`pip install 'tilth[fast]'`).

Without it, numpy and Polars do the same work with the same results, about half as fast. What was compiled is kept
beside the module, or in the user's cache folder.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@cache
def loops(name: Literal["words", "scores"]) -> ModuleType | None:
    """The module `loops_NAME`; None without Numba, or where it finds no folder for what it compiles."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module(f"tilth.curate.loops_{name}")
    except RuntimeError:
        return None


def loop(function: F) -> F:
    """The decorator of what is to be compiled. Without Numba it leaves the function as it is, and nothing calls it."""
    if importlib.util.find_spec("numba") is None:
        return function
    compiled: F = importlib.import_module("numba").njit(cache=True)(function)
    return compiled
