"""Personal data: e-mail addresses, telephone numbers and IP addresses, as spans beside documents.

The patterns run on the linear engine, over texts that hold a match at all; what a pattern cannot say (it has no
look-around) is asked of the bytes beside each match. All is found by form: a number that looks like a telephone's is
taken for one, and a name or a postal address is not found.

`dolma-1.2.1` finds what `pii_regex_with_counts_fast_v2` of that toolkit finds (Soldaini et al. 2024, arXiv 2402.00159,
section 3.4): paragraph by paragraph, spans with the white space and the punctuation around them.
"""

from typing import Literal

import numpy as np
import polars as pl

from tilth.curate.attributes import Attribute
from tilth.curate.matches import Matches, find
from tilth.curate.personal_patterns import DOLMA, EMAIL, IPV4, IPV6, PHONE, is_ipv6, not_an_address
from tilth.curate.sets.frame import SHORT
from tilth.curate.spans import span_lists

Kind = Literal["email", "phone", "ip"]
KINDS: tuple[Kind, ...] = ("email", "phone", "ip")
QUESTION_MARKS = 10_000  # dolma looks at no document that has more
DIGITS = np.arange(256, dtype=np.uint8) - np.uint8(ord("0")) < 10
SIGNS = np.frombuffer(b"-+/", np.uint8)
LETTERS = np.array([(chr(code).isalnum() and code < 128) or chr(code) == "_" for code in range(256)])


class PersonalData(Attribute):
    """`personal_emails`, `personal_phones`, `personal_ips`: spans of what was found; `personal_data`: how many."""

    kind: str = "personal_data"
    profile: Literal["default", "dolma-1.2.1"] = "default"
    prefix: str = ""

    def columns(self) -> tuple[str, ...]:
        names = ("personal_emails", "personal_phones", "personal_ips", "personal_data")
        return tuple(f"{self.prefix}{SHORT[self.profile]}{name}" for name in names)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        texts, rows = records["text"], records.height
        found = dolma_spans(texts) if self.profile == "dolma-1.2.1" else spans(texts)
        lists = [span_lists(rows, *found[kind], touching=False) for kind in KINDS]
        count = sum(one.list.len().cast(pl.Int64) for one in lists[1:]) + lists[0].list.len().cast(pl.Int64)
        return pl.DataFrame([one.alias(name) for one, name in zip([*lists, count], self.columns(), strict=True)])


Spans = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, start and end of each


def spans(texts: pl.Series) -> dict[Kind, Spans]:
    """By kind, without those that begin inside another: a number in an e-mail address is no telephone's."""
    found: dict[Kind, list[Matches]] = {"email": [_emails(texts)], "ip": [_ipv4(texts), _ipv6(texts)],
                                        "phone": [_phones(texts)]}
    kind_of = np.concatenate([np.full(len(one.row), KINDS.index(kind)) for kind, of in found.items() for one in of])
    row, start, end = (np.concatenate([getattr(one, name) for of in found.values() for one in of])
                       for name in ("row", "starts", "ends"))
    order = np.lexsort((-end, start, row))
    row, start, end, kind_of = row[order], start[order], end[order], kind_of[order]
    apart = int(end.max(initial=0)) + 1
    reach = np.maximum.accumulate(row * apart + end) if len(row) else end
    free = np.ones(len(row), bool)
    free[1:] = (row * apart + start)[1:] >= reach[:-1]
    return {kind: (row[mask], start[mask], end[mask])
            for at, kind in enumerate(KINDS) for mask in [free & (kind_of == at)]}


def _emails(texts: pl.Series) -> Matches:
    found = find(texts, EMAIL)
    return found.where(~not_an_address(found.texts))


def _phones(texts: pl.Series) -> Matches:
    """No digit or letter may stand beside a number, nor behind a sign that joins numbers (and words, on the left)."""
    found = find(texts, PHONE)
    sign, beyond = found.before.T
    joined = (np.isin(sign, SIGNS) & LETTERS[beyond]) | ((sign == ord(".")) & DIGITS[beyond])
    goes_on = (np.isin(found.after[:, 0], SIGNS) | (found.after[:, 0] == ord("."))) & DIGITS[found.after[:, 1]]
    return found.where(~(LETTERS[sign] | joined | LETTERS[found.after[:, 0]] | goes_on))


def _ipv4(texts: pl.Series) -> Matches:
    """Four numbers, not five: no digit or letter beside them, no point with a digit behind it."""
    found = find(texts, IPV4)
    before = (found.before[:, 0] == ord(".")) & DIGITS[found.before[:, 1]]
    after = (found.after[:, 0] == ord(".")) & DIGITS[found.after[:, 1]]
    return found.where(~(LETTERS[found.before[:, 0]] | before | LETTERS[found.after[:, 0]] | after))


def _ipv6(texts: pl.Series) -> Matches:
    found = find(texts, IPV6)
    beside = LETTERS[found.before[:, 0]] | LETTERS[found.after[:, 0]] | (found.after[:, 0] == ord(":"))
    found = found.where(~beside)
    return found.where(is_ipv6(found.texts))


def dolma_spans(texts: pl.Series) -> dict[Kind, Spans]:
    """As dolma's tagger finds them, overlaps included."""
    looked_at = (texts.str.count_matches("?", literal=True) <= QUESTION_MARKS).to_numpy()
    anything = texts.str.contains("|".join(DOLMA.values())).to_numpy() & looked_at
    rows = np.flatnonzero(anything)
    parts = texts.gather(rows).str.split("\n", inclusive=True)
    counts = parts.list.len().to_numpy()
    paragraphs = parts.explode() if len(rows) else pl.Series([], dtype=pl.String)
    row = np.repeat(rows, counts)
    ends = np.cumsum(paragraphs.str.len_chars().to_numpy().astype(np.int64))
    begin = np.concatenate([[0], ends])[:-1]
    begin -= np.repeat(begin[np.cumsum(counts) - counts], counts) if len(rows) else begin
    found: dict[Kind, Spans] = {}
    for kind in KINDS:
        matches = find(paragraphs, DOLMA[kind])
        if kind == "email":
            halves = matches.texts.str.extract_groups(DOLMA[kind]).struct.field("1").str.splitn("@", 2)
            matches = matches.where(((halves.struct.field("field_0") != "(")
                                     & halves.struct.field("field_1").str.contains(".", literal=True)).to_numpy())
        found[kind] = (row[matches.row], begin[matches.row] + matches.starts, begin[matches.row] + matches.ends)
    return found
