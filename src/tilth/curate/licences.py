"""Licences by their SPDX names, from the spellings, full names and addresses that records carry.

https://spdx.org/licenses/ lists the names. Nothing is inferred: what is not recognised has no name, `CC-BY-NC` is not
`CC-BY`, and a licence without its version stays without one (`CC-BY`, which is no SPDX name). The public domain, which
the list does not know, is `LicenseRef-public-domain`.
"""

import re

PUBLIC_DOMAIN = "LicenseRef-public-domain"
NO_CREDIT = {PUBLIC_DOMAIN, "CC0-1.0", "Unlicense", "0BSD", "WTFPL", "PDDL-1.0"}  # nobody need be named
# Letters and digits of a name in lower case, without `the`, `license` and `version` -> SPDX's name.
NAMES = {
    "mit": "MIT", "expat": "MIT", "x11": "X11", "isc": "ISC", "un": "Unlicense", "wtfpl": "WTFPL", "zlib": "Zlib",
    "0bsd": "0BSD", "bsdzeroclause": "0BSD", "bsd2clause": "BSD-2-Clause", "simplifiedbsd": "BSD-2-Clause",
    "bsd3clause": "BSD-3-Clause", "newbsd": "BSD-3-Clause", "modifiedbsd": "BSD-3-Clause", "bsd": "BSD",
    "psf": "PSF-2.0", "psf20": "PSF-2.0", "pythonsoftwarefoundation": "PSF-2.0", "publicdomain": PUBLIC_DOMAIN,
    "pd": PUBLIC_DOMAIN, "publicdomainmark": PUBLIC_DOMAIN, "publicdomainmark10": PUBLIC_DOMAIN,
    PUBLIC_DOMAIN.lower().replace("-", ""): PUBLIC_DOMAIN, "licenserefpublicdomain": PUBLIC_DOMAIN,
    "refpublicdomain": PUBLIC_DOMAIN, "cc0": "CC0-1.0", "cczero": "CC0-1.0", "creativecommonszero": "CC0-1.0",
    "cc0universal": "CC0-1.0",
}
# The same without its version -> SPDX's stem, to which the version is put.
STEMS = {
    "apache": "Apache", "apachesoftware": "Apache", "cc0": "CC0", "cc0universal": "CC0", "creativecommonszero": "CC0",
    "gpl": "GPL", "gnugpl": "GPL", "gnugeneralpublic": "GPL", "lgpl": "LGPL", "gnulgpl": "LGPL",
    "gnulessergeneralpublic": "LGPL", "agpl": "AGPL", "gnuagpl": "AGPL", "gnuafferogeneralpublic": "AGPL",
    "gfdl": "GFDL", "gnufdl": "GFDL", "gnufreedocumentation": "GFDL", "mpl": "MPL", "mozillapublic": "MPL",
    "eupl": "EUPL", "europeanunionpublic": "EUPL", "epl": "EPL", "eclipsepublic": "EPL", "ogluk": "OGL-UK",
    "ogl": "OGL-UK", "opengovernment": "OGL-UK", "etalab": "etalab", "openlicenceetalab": "etalab",
    "artistic": "Artistic", "boostsoftware": "BSL", "bsl": "BSL", "afl": "AFL", "academicfree": "AFL",
    "odcby": "ODC-By",
    "opendatacommonsattribution": "ODC-By", "odbl": "ODbL", "opendatabase": "ODbL", "pddl": "PDDL",
    "opendatacommonspublicdomaindedication": "PDDL",
}
GNU = {"GPL", "LGPL", "AGPL", "GFDL"}
CC = {"attribution": "BY", "by": "BY", "noncommercial": "NC", "nc": "NC", "noderivatives": "ND", "noderivs": "ND",
      "nd": "ND", "sharealike": "SA", "sa": "SA"}
CC_NOISE = {"cc", "creative", "commons", "international", "unported", "generic", "deed", "license", "licence", "the"}
LATER = re.compile(r"(?i)\s*(?:\+|,?[\s-]+or[\s-]+(?:any[\s-]+)?(?:later|newer)(?:[\s-]+version)?)")
VERSION = re.compile(r"(?i)[\s,-]*(?:\bversion|v|\bv)?\.?[\s-]*([0-9]+(?:\.[0-9]+)*)\s*$")
CLOSING = re.compile(r"(?i)(?:\s+(?:international|unported|generic|deed|universal|licen[cs]e))+$")
ADDRESSES = (  # of licences, without scheme and `www.`; group 1 and 2 are said in words
    (re.compile(r"creativecommons\.org/licenses/([a-z-]+)/([0-9.]+)"), "CC {} {}"),
    (re.compile(r"creativecommons\.org/publicdomain/zero/([0-9.]+)"), "CC0 {}"),
    (re.compile(r"creativecommons\.org/publicdomain/mark"), "public domain"),
    (re.compile(r"apache\.org/licenses/license-([0-9.]+[0-9])"), "Apache {}"),
    (re.compile(r"gnu\.org/licenses/(?:old-licenses/)?([a-z]+)-([0-9.]+[0-9])"), "{} {}"),
    (re.compile(r"(?:opensource\.org/licenses?|spdx\.org/licenses)/([a-z0-9.+-]+?)(?:\.html|\.php|/)?$"), "{}"),
)


def spdx(given: str) -> str | None:
    """The SPDX expression of what a record says of its licence, None if any part of it is not known. Licences to
    choose from are joined by ` OR `, those that hold together by ` AND ` (a slash says neither, so both are held to
    apply); a note in brackets at the end is left out. A choice inside brackets is not taken apart."""
    text = LATER.sub("+", " ".join(given.split()))
    text = text[1:-1] if re.fullmatch(r"\([^()]*\)", text) else re.sub(r"\s+\([^()]*\)$", "", text)
    if re.search(r"(?i)\([^()]*\sor\s[^()]*\)", text):
        return None
    choices = []
    for choice in re.split(r"(?i)\s+or\s+", text):
        parts = [one(part.strip("() ")) for part in re.split(r"(?i)\s+and\s+|\s*[;&]\s*|\s+/\s+", choice)]
        if None in parts:
            return None
        choices.append(" AND ".join(dict.fromkeys(part for part in parts if part)))
    return " OR ".join(dict.fromkeys(choices))


def one(text: str) -> str | None:
    """The name of a single licence, None if it is not known."""
    for pattern, words in ADDRESSES:
        found = pattern.search(text.lower())
        if found:
            return one(words.format(*found.groups()))
    later = text.endswith("+") or text.lower().endswith("-or-later")
    text = re.sub(r"(?i)(?:\+|-or-later|-only)$", "", text)
    if key(text) in NAMES:
        return NAMES[key(text)]
    found = VERSION.search(CLOSING.sub("", text))
    stem, version = (text[:found.start()], found[1]) if found else (text, None)
    if version is not None and "." not in version:
        version += ".0"
    name = STEMS.get(key(stem)) or creative_commons(stem)
    if name is None or version is None:
        return name
    end = "" if name not in GNU else "-or-later" if later else "-only"
    return f"{name}-{version}{end}"


def key(text: str) -> str:
    return re.sub(r"the|licen[cs]e|version|[^a-z0-9]", "", text.lower())


def creative_commons(text: str) -> str | None:
    """`CC-BY-SA` of `CC BY-SA` or `Creative Commons Attribution-ShareAlike`."""
    joined = re.sub(r"(?i)(share|non|no)[\s-]+(alike|commercial|deriv)", r"\1\2", text.lower())
    words = re.findall("[a-z]+", joined)
    if not words or words[0] not in ("cc", "creative"):
        return None
    terms = [word for word in words if word not in CC_NOISE]
    if not terms or any(word not in CC for word in terms):
        return None
    return "-".join(["CC", *dict.fromkeys(CC[word] for word in terms)])


def family(name: str) -> str:
    """A name without its version: `CC-BY` of `CC-BY-4.0`, `GPL` of `GPL-3.0-or-later`."""
    return re.sub(r"-[0-9]+(?:\.[0-9]+)+(?:-only|-or-later)?$", "", name)


def allowed(expression: str, listed: set[str]) -> bool:
    """Do the listed licences allow the expression? One of its choices must be listed whole; a listed name without a
    version stands for all its versions."""
    return any(all(part in listed or family(part) in listed for part in choice.split(" AND "))
               for choice in expression.split(" OR "))


def needs_credit(expression: str) -> bool:
    """Does every choice ask that somebody be named (or is its text to be passed on)?"""
    return not any(all(part in NO_CREDIT for part in choice.split(" AND ")) for choice in expression.split(" OR "))
