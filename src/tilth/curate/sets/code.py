"""Rules for source code: line lengths, letters and digits, licence headers, secrets.

RedPajama's rules for GitHub (Together 2023) and StarCoder's (Li et al. 2023, arXiv 2305.06161, section 3.1), as Dolma
uses them: at most 1,000 characters in a line and 100 on average, at least 25 % letters and digits, at least 1.5
letters a token; files that begin as XML go; licence headers are taken out.
"""

from typing import Any, ClassVar

import numpy as np
import polars as pl

from tilth.curate.attributes import TEXT, Attribute
from tilth.curate.rules import DocumentRule
from tilth.curate.sets.frame import SHORT, MeasuredSet, Profile
from tilth.curate.sets.lines import PYTHON_BREAK
from tilth.curate.sets.ratios import ratio
from tilth.curate.sets.words import Words

COLUMNS = ("longest_line", "mean_line", "alphanumeric", "letters_per_token", "xml")
TOKEN = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\s]+"
PYTHON_TOKEN = r"[\p{L}\p{M}\p{N}\p{Pc}]+|[^\p{L}\p{M}\p{N}\p{Pc}\s]+"
_COMMENT = r"(?://|#|--|;|%)"
_NOTICE = r"(?i:copyright|licen[cs]e|\(c\)|all rights reserved|spdx)"
_INSIDE = r"(?:[^*]|\*+[^*/])"
# What has to stay on top of a file; then a comment that speaks of rights, and the blank lines after it.
HEADER = (rf"\A((?:#!.*\n|<\?php[^\S\n]*\n|#.*coding[:=].*\n)*)\s*(?:"
          rf"/\*{_INSIDE}*?{_NOTICE}{_INSIDE}*\*+/[^\S\n]*\n?"
          rf"|(?:{_COMMENT}.*\n)*?{_COMMENT}.*{_NOTICE}.*(?:\n|\z)(?:{_COMMENT}.*(?:\n|\z))*)\n*")
BLOCK = r"/\*[^*]*\*+(?:[^/*][^*]*\*+)*/"
LEADING = r"\A((?:(?:(?://|#|--).*)?\n)*(?:(?://|#|--).*\z)?)"
SECRETS = {  # only formats that carry their own mark; a random string alone is no evidence
    "aws key": r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}\b", "github token": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b",
    "gitlab token": r"\bglpat-[A-Za-z0-9_\-]{20,}", "slack token": r"\bxox[abposr]-[A-Za-z0-9\-]{10,}",
    "google key": r"\bAIza[A-Za-z0-9_\-]{35}", "stripe key": r"\b[rs]k_live_[A-Za-z0-9]{24,}",
    "pypi token": r"\bpypi-[A-Za-z0-9_\-]{50,}", "json web token": r"\beyJ[\w\-]{10,}\.eyJ[\w\-]{10,}\.[\w\-]{10,}",
    "private key":
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[A-Za-z0-9+/=\s]*(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----)?",
    "password in a url": r"\b[a-z][a-z0-9+.\-]*://[^\s/:@]+:[^\s/:@]{3,}@",
}
SECRET = "|".join(pattern.replace(r"\b", r"(?-u:\b)") for pattern in SECRETS.values())


class CodeMeasures(Attribute):
    """`longest_line`, `mean_line` (characters), `alphanumeric` (share of characters that are letters or digits),
    `letters_per_token` (a token is a run of word characters, or of signs), `xml` (the first 100 characters hold an
    XML declaration)."""

    kind: str = "code"
    profile: Profile = "default"
    prefix: str = ""

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{SHORT[self.profile]}code_{name}" for name in COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        peer = self.profile == "dolma-1.2.1"
        lines = _lines(records, rf"\r\n|[{PYTHON_BREAK}]" if peer else r"\r\n|\r")
        lengths, counts = lines.lengths(), lines.counts()
        longest = np.zeros(records.height, np.int64)
        np.maximum.at(longest, lines.document(), lengths)
        letters, digits = (r"\p{L}", r"\p{L}\p{N}") if peer else (r"\p{Alphabetic}", r"\p{Alphabetic}\p{N}")
        frame = records.select(
            characters=TEXT.str.len_chars().cast(pl.Int64), letters=_how_many(letters), digits=_how_many(digits),
            tokens=TEXT.str.count_matches(PYTHON_TOKEN if peer else TOKEN).cast(pl.Int64) + int(peer),
            xml=TEXT.str.head(100).str.contains("<?xml version=", literal=True).cast(pl.Int64))
        of = {name: frame[name].to_numpy() for name in frame.columns}
        values = [longest, ratio(lines.sums(lengths), counts), ratio(of["digits"], of["characters"]),
                  ratio(of["letters"], of["tokens"]), of["xml"]]
        return pl.DataFrame(dict(zip(self.columns(), values, strict=True)))


class Code(MeasuredSet):
    """Rules for source code. A threshold of null switches its rule off.

    `dolma-1.2.1` (`code_redpajama_taggers_v1`) breaks lines at every sign of `str.splitlines`, and counts one token
    too many (it splits by the pattern of a token, and counts the pieces between).
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        "maximum_line": ("code_longest_line", "maximum"), "maximum_mean_line": ("code_mean_line", "maximum"),
        "minimum_alphanumeric": ("code_alphanumeric", "minimum"),
        "minimum_letters_per_token": ("code_letters_per_token", "minimum"), "maximum_xml": ("code_xml", "maximum")}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {"dolma-1.2.1": {"maximum_xml": None}}

    kind: str = "code"
    maximum_line: float | None = 1000
    maximum_mean_line: float | None = 100
    minimum_alphanumeric: float | None = 0.25
    minimum_letters_per_token: float | None = 1.5
    maximum_xml: float | None = 0

    def attribute(self) -> CodeMeasures:
        return CodeMeasures(profile=self.profile, prefix=self.prefix)


class LicenceHeader(DocumentRule):
    """Takes the licence or copyright header out of a source file.

    Default: only the first comment of the file (after an interpreter line and the like, which stay), and only if it
    speaks of rights. `dolma-1.2.1` (`code_copyright_comments_v1`, after RedPajama): the first block comment anywhere,
    if it says copyright; in files without block comments every leading comment line, interpreter lines included, its
    end computed without the newlines.
    """

    kind: str = "licence_header"
    rewrites_text: ClassVar[bool] = True
    profile: Profile = "default"

    def rewrites(self) -> pl.Expr:
        if self.profile != "dolma-1.2.1":
            return TEXT.str.replace(HEADER, "${1}")
        says = TEXT.str.extract(f"({BLOCK})").str.contains("(?i)copyright")
        lead = TEXT.str.extract(LEADING)
        comments = lead.str.count_matches(r"(?m)^(?://|#|--)").cast(pl.Int64)
        whole = (lead.str.len_bytes() == TEXT.str.len_bytes()).cast(pl.Int64)  # then a last line ends without newline
        empty = lead.str.count_matches("\n", literal=True).cast(pl.Int64) + whole - comments
        end = lead.str.replace_all("\n", "", literal=True).str.len_chars().cast(pl.Int64) + empty
        return (pl.when(TEXT.str.contains(BLOCK))
                .then(pl.when(says).then(TEXT.str.replace(BLOCK, "")).otherwise(TEXT))
                .otherwise(TEXT.str.slice(end)))


class Secrets(Attribute):
    """Keys, tokens and passwords of well-known formats (see SECRETS), how many."""

    kind: str = "secrets"

    def expression(self) -> pl.Expr:
        return TEXT.str.count_matches(SECRET)


class MaskSecrets(DocumentRule):
    """Puts `mask` in the place of keys, tokens and passwords of well-known formats."""

    kind: str = "mask_secrets"
    rewrites_text: ClassVar[bool] = True
    mask: str = "[secret]"

    def rewrites(self) -> pl.Expr:
        return TEXT.str.replace_all(SECRET, self.mask.replace("$", "$$"))


def _how_many(inside: str) -> pl.Expr:
    """Characters of a class; runs are cheaper to match than single characters."""
    return (TEXT.str.len_chars().cast(pl.Int64)
            - TEXT.str.replace_all(f"[{inside}]+", "").str.len_chars().cast(pl.Int64))


def _lines(records: pl.DataFrame, breaks: str) -> Words:
    """Lines; a last one without a break counts, an empty text has none."""
    texts = records.select(TEXT.str.replace_all(breaks, "\n").str.replace(r"\n\z", "").str.split("\n"),
                           empty=TEXT == "")
    return Words.of_lists(texts.select(
        pl.when("empty").then(pl.col("text").list.head(0)).otherwise(pl.col("text"))).to_series())
