"""Personal data masked before text is shown: e-mail addresses, telephone numbers, IP addresses.

Meant for the few examples and samples of a report, and deliberately over-eager: an example loses nothing by hiding a
version number that looks like an address. It is not the corpus rule for personal data, which has its own room.
"""

import ipaddress
import re

# All quantifiers are bounded, so that hostile text costs linear time.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_PHONE = re.compile(
    r"(?<![\w+.-])(?:"
    r"(?:\+|00)\d{1,3}[ ./()-]{0,2}(?:\d[ ./()-]{0,2}){6,12}\d"  # international
    r"|\(\d{2,5}\)[ .-]?\d{2,5}[ .-]?\d{2,5}(?:[ .-]?\d{1,4})?"  # area code in brackets
    r"|\d{3}[ .-]\d{3}[ .-]\d{4}"  # North America
    r"|0\d{1,4}[ /-]\d{2,4}[ -]?\d{2,4}(?:[ -]\d{2,4})?"  # national with a leading zero
    r")(?![\w-])")


def mask_personal(text: str) -> str:
    """`text` with e-mail addresses, IP addresses and telephone numbers replaced by [e-mail], [IP] and [phone]."""
    text = _EMAIL.sub("[e-mail]", text)
    text = _IPV4.sub(_address, text)
    text = _IPV6.sub(_address, text)
    return _PHONE.sub("[phone]", text)


def _address(match: re.Match[str]) -> str:
    """Only what really is an address: times (12:30:45) and slices (a[1::2]) have the same letters."""
    found = match[0]
    if "." not in found and sum(1 for group in found.split(":") if group) < 3:
        return found
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return found
    return "[IP]"
