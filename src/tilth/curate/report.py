"""What the report counts: documents and bytes a rule saw, dropped and rewrote, with a few examples of each."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from tilth import __version__

EXAMPLES = 5
EXAMPLE_CHARACTERS = 300

# Masks for examples only (a report is shown around); finding personal data in a corpus is a rule's work. They
# are applied to a few hundred characters and cannot backtrack far.
PERSONAL = ((re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}"), "[e-mail]"),
            (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "[IP address]"),
            (re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){7}|(?:[0-9A-Fa-f]{1,4}:){1,6}"
                        r"(?::[0-9A-Fa-f]{1,4}){1,6})(?![\w:])"), "[IP address]"),
            (re.compile(r"(?<![\w.])\+?\d(?:[ ()./-]{0,2}\d){8,14}(?![\w.])"), "[phone number]"))


def masked(text: str) -> str:
    """Text of an example, cut and with e-mail addresses, IP addresses and phone numbers masked."""
    for pattern, label in PERSONAL:
        # Masked before cutting, so that a cut through an address does not show its first half.
        text = pattern.sub(label, text[:4 * EXAMPLE_CHARACTERS])
    return text[:EXAMPLE_CHARACTERS]


class Amount:
    """Documents and bytes."""

    def __init__(self, documents: int = 0, size: int = 0):
        self.documents, self.bytes = int(documents), int(size)

    def add(self, other: "Amount") -> None:
        self.documents += other.documents
        self.bytes += other.bytes

    def as_json(self) -> dict[str, int]:
        return {"documents": self.documents, "bytes": self.bytes}

    @classmethod
    def from_json(cls, value: dict[str, int]) -> "Amount":
        return cls(value["documents"], value["bytes"])

    @classmethod
    def of(cls, sizes: np.ndarray, chosen: np.ndarray | None = None) -> "Amount":
        """The amount of documents with these sizes, or of the chosen ones among them."""
        picked = sizes if chosen is None else sizes[chosen]
        return cls(len(picked), int(picked.sum()))


class Tally:
    """One rule's counts and examples; shards are tallied apart and merged in order."""

    PARTS = ("seen", "dropped", "rewritten")

    def __init__(self, name: str):
        self.name = name
        self.seen, self.dropped, self.rewritten = Amount(), Amount(), Amount()
        self.found: Counter[str] = Counter()  # what the rule says it counts
        self.examples: list[dict[str, str]] = []

    def example(self, identity: str, text: str, why: str) -> None:
        if not self.full():
            self.examples.append({"id": masked(identity), "text": masked(text), "why": masked(why)})

    def full(self) -> bool:
        return len(self.examples) >= EXAMPLES

    def as_json(self) -> dict[str, Any]:
        parts = {part: getattr(self, part).as_json() for part in self.PARTS}
        return {"name": self.name, **parts, **({"found": dict(self.found)} if self.found else {}),
                "examples": self.examples}

    def merge(self, value: dict[str, Any]) -> None:
        """Add the counts of another shard's tally (as JSON), and its examples while there is room."""
        for part in self.PARTS:
            getattr(self, part).add(Amount.from_json(value[part]))
        self.found.update(value.get("found", {}))
        self.examples += value["examples"][:EXAMPLES - len(self.examples)]


def merged(shards: Iterable[list[dict[str, Any]]], names: list[str]) -> list[Tally]:
    """The tallies of all shards as one for each name; a name that no shard mentions has counts of zero."""
    tallies = {name: Tally(name) for name in names}
    for shard in shards:
        for value in shard:
            tallies[value["name"]].merge(value)
    return list(tallies.values())


def source_amounts(records: pl.DataFrame) -> list[dict[str, Any]]:
    """Documents and bytes of each (source, license)."""
    grouped = records.group_by("source", "license").agg(
        documents=pl.len(), bytes=pl.col("text").str.len_bytes().cast(pl.Int64).sum())
    return grouped.sort("source", "license", nulls_last=True).to_dicts()


def merge_sources(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """`[{source, license, documents, bytes}]` of all shards, largest source first."""
    totals: dict[tuple[str, str | None], Amount] = {}
    for part in parts:
        for row in part:
            totals.setdefault((row["source"], row["license"]), Amount()).add(Amount.from_json(row))
    ordered = sorted(totals.items(), key=lambda item: (-item[1].bytes, item[0][0], item[0][1] or ""))
    return [{"source": source, "license": license_, **amount.as_json()} for (source, license_), amount in ordered]


def build(*, identity: str, read: Amount, quarantined: Counter[str], rules: list[Tally],
          about: dict[str, dict[str, Any]], kept: Amount, held_out: dict[str, Any],
          sources: list[dict[str, Any]]) -> dict[str, Any]:
    """report.json. `read` counts what readers yielded, so records in = read + quarantined, and read = kept + held
    out + all that rules dropped (near copies of held-out text are the last rule). `about` adds to rules, by name."""
    return {
        "version": __version__,
        "identity": identity,
        "read": read.as_json(),
        "quarantined": {"documents": quarantined.total(), "by_reason": dict(sorted(quarantined.items()))},
        "rules": [{**tally.as_json(), **about.get(tally.name, {})} for tally in rules],
        "kept": kept.as_json(),
        "held_out": held_out,
        "sources": sources,
    }
