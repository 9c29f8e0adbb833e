"""Numbers and text as people read them: three figures, a prefix, a unit; unknown values say so."""

import math
import re
from typing import Any

from tilth.recipe import duration, quantity

UNKNOWN = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Explicit direction controls could make text read other than it is; C0 controls have no picture at all.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def finite(value: Any) -> float | None:
    """The value as a float, or None for anything that is not a finite number (booleans are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def count(value: Any) -> str:
    """1,234,567 with thin separators; an unknown count is a dash."""
    number = finite(value)
    return UNKNOWN if number is None else f"{round(number):,}"


def short(value: Any, unit: str = "") -> str:
    """4.2 M, 12.3 k: three figures and a decimal prefix; beyond peta, a power of ten."""
    number = finite(value)
    if number is None:
        return UNKNOWN
    if abs(number) >= 1e18:
        return f"{power(number)} {unit}".rstrip()
    return quantity(number, unit)


def power(number: float) -> str:
    """1.2 × 10²¹."""
    exponent = math.floor(math.log10(abs(number)))
    return f"{number / 10 ** exponent:.2f} × 10{str(exponent).translate(_SUPERSCRIPT)}"


def size(value: Any) -> str:
    """Bytes in binary units: 812 B, 1.05 MiB, 3.2 GiB."""
    number = finite(value)
    if number is None:
        return UNKNOWN
    for limit, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {unit}" if number < 999.5 * limit else f"{number / limit:.0f} {unit}"
    return f"{number:.0f} B"


def seconds(value: Any) -> str:
    number = finite(value)
    return UNKNOWN if number is None else duration(number)


def decimals(value: Any, places: int = 3) -> str:
    number = finite(value)
    return UNKNOWN if number is None else f"{number:.{places}f}"


def significant(value: Any, figures: int = 4) -> str:
    number = finite(value)
    return UNKNOWN if number is None else f"{number:.{figures}g}"


def percent(value: Any, places: int = 1) -> str:
    """A share in 0..1 as a percentage; small but real shares are not rounded to nothing."""
    number = finite(value)
    if number is None:
        return UNKNOWN
    if 0 < number < 0.5 * 10 ** -(places + 2):
        return f"< {10 ** -places:.{places}f} %"
    return f"{100 * number:.{places}f} %"


def visible(text: Any, limit: int | None = None) -> str:
    """Text fit to show: unseen control characters and lone surrogates become their code, long text is cut."""
    shown = _UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", str(text))
    return shown if limit is None or len(shown) <= limit else shown[:limit].rstrip() + " …"
