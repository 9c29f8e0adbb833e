"""The patterns of personal data, for the linear engine, and what a match must be beside."""

import ipaddress

import numpy as np
import polars as pl

from tilth.curate.sets.words import PYTHON_SPACE

# An address of any script; quoted local parts, which hardly anybody has, are left out.
EMAIL = (r"[\p{L}\p{N}_][\p{L}\p{M}\p{N}_.%+'\-]*@"
         r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}.\-]*[\p{L}\p{M}\p{N}])?\.(?:xn--[a-z0-9\-]+|\p{L}[\p{L}\p{M}]+)")
# `icon@2x.png` is a picture of double size, `jquery@3.min.js` a version.
_FILES = r"(?i)\.(?:png|jpe?g|gif|svg|webp|ico|css|js|mjs|html?)$|\.\."

# Numbers of the North American plan, and any with a country code (ITU-T E.164: at most 15 digits). With nothing but
# spaces between the groups, area and exchange must be some that exist there (2 to 9 first): columns of figures do.
_PLUS_ONE = r"(?:\+?1[-. ]?)?"
PHONE = "|".join([
    r"\+[1-9](?:[-. /]?(?:\([0-9]{1,4}\)|[0-9])){7,14}",
    rf"{_PLUS_ONE}\([0-9]{{3}}\)[-. ]{{0,2}}[0-9]{{3}}[-. ]?[0-9]{{4}}",
    rf"{_PLUS_ONE}[0-9]{{3}}[-.][0-9]{{3}}[-. ][0-9]{{4}}",
    rf"{_PLUS_ONE}[2-9][0-9]{{2}} [2-9][0-9]{{2}}[-. ][0-9]{{4}}"])

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
# Anything that may be one (RFC 4291, section 2.2); `is_ipv6` decides.
IPV6 = r"[0-9A-Fa-f]{0,4}:(?:[0-9A-Fa-f]{0,4}:){1,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4})"

_SPACE = PYTHON_SPACE
DOLMA = {
    "email": rf"[.{_SPACE}@,?!;:)(]*([^{_SPACE}@]+@[^{_SPACE}@,?!;:)(]+?)[.{_SPACE}@,?!;:)(]?[{_SPACE}]",
    "phone": rf"[{_SPACE}]+\(?(\d{{3}})\)?[-\. ]*(\d{{3}})[-. ]?(\d{{4}})",
    "ip": r"(?:(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)",
}


def not_an_address(found: pl.Series) -> np.ndarray:
    """Which matches of EMAIL are names of files, or have two points in a row."""
    return found.str.contains(_FILES).to_numpy()


def is_ipv6(found: pl.Series) -> np.ndarray:
    """Which matches of IPV6 are addresses. One that ends in `::` is a network (or `5::` a slice), and without a digit
    (`a::b`) it is a name of C++.

    Each different one is asked once, for times (12:30:45) and the like are many and the same."""
    known = {text: _is_ipv6(text) for text in found.unique().to_list()}
    return np.array([known[text] for text in found.to_list()], bool)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return not text.endswith("::") and any(map(str.isdigit, text))
