"""Where the compiled loops are, if Numba is installed (`pip install 'tilth[fast]'`).

Without it, numpy and Polars do the same work with the same results, about half as fast. Compiled once, loops are kept
beside the module or in the user's cache folder.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Literal


@cache
def loops(name: Literal["words", "scores"]) -> ModuleType | None:
    """The module `loops_NAME`; None without Numba, or where it finds no folder for what it compiles."""
    try:
        return importlib.import_module(f"tilth.curate.loops_{name}")
    except (ImportError, RuntimeError):
        return None
