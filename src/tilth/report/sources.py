"""What the model was trained on: documents and bytes that stayed, tokens in the pool, tokens actually drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tilth.report.formats import finite
from tilth.report.reading import Run, listing, mapping

UNSTATED = "not stated"


@dataclass
class Source:
    """One source with its licences; None means that no stage recorded the figure."""

    name: str
    licenses: list[str] = field(default_factory=list)
    documents: float | None = None
    bytes: float | None = None
    pool_tokens: float | None = None
    drawn: float | None = None

    @property
    def license(self) -> str:
        return ", ".join(self.licenses) or UNSTATED


def read_sources(run: Run) -> list[Source]:
    """Sources of the run joined by name over the stages, the most drawn first."""
    found: dict[str, Source] = {}

    def source(name: object, license: object) -> Source:
        one = found.setdefault(str(name), Source(str(name)))
        if license and str(license) not in one.licenses:
            one.licenses.append(str(license))
        return one

    def stated(entry: dict[str, Any]) -> str:
        # A part of a source without a licence must not hide behind the part that has one.
        return str(entry.get("license") or UNSTATED)

    for entry in listing(mapping(run.json("curate", "report.json")).get("sources")):
        one = source(entry.get("source", entry.get("name", "?")), stated(entry))
        one.documents = _plus(one.documents, entry.get("documents"))
        one.bytes = _plus(one.bytes, entry.get("bytes"))
    curated = set(found)
    for entry in listing(mapping(run.json("tokenize", "report.json")).get("sources")):
        one = source(entry.get("source", entry.get("name", "?")), entry.get("license"))
        one.pool_tokens = _plus(one.pool_tokens, entry.get("tokens", entry.get("value")))
        if one.name not in curated:  # a run that starts from finished documents has no curated folder
            one.documents = _plus(one.documents, entry.get("documents"))
            one.bytes = _plus(one.bytes, entry.get("bytes"))
    for name, drawn in mapping(run.summary("pretrain").get("sources")).items():
        entry = drawn if isinstance(drawn, dict) else {"tokens": drawn}
        one = source(name, entry.get("license"))
        one.drawn = _plus(one.drawn, entry.get("tokens"))
    return sorted(found.values(), key=lambda one: (-(one.drawn or 0), -(one.bytes or 0), one.name))


def _plus(old: float | None, more: object) -> float | None:
    number = finite(more)
    return old if number is None else (old or 0) + number


def measure(sources: list[Source]) -> tuple[str, Callable[[Source], float | None]] | None:
    """What shares are taken of: tokens drawn if known, else tokens in the pool, else bytes kept."""
    measures: list[tuple[str, Callable[[Source], float | None]]] = [
        ("tokens drawn in training", lambda one: one.drawn),
        ("tokens in the pool", lambda one: one.pool_tokens),
        ("bytes kept", lambda one: one.bytes)]
    return next(((name, get) for name, get in measures if any(get(one) for one in sources)), None)
