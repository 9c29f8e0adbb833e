"""Rules by the address that a document came from: lists of domains, of addresses, and of words in them."""

from pathlib import Path

import polars as pl
from pydantic import model_validator

from tilth.curate.rules import DocumentRule
from tilth.curate.sets.c4 import literal
from tilth.recipe import BadInput

HOST = r"(?i)^(?:[a-z][a-z0-9+.\-]*:)?(?://)?(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]+)"
LEVELS = 8  # a host's parent domains that are looked up
ENTRY = r"(?:[0-9a-f.:]+\s+)?(?:\|\|)?([^\s^|]+)\^?"  # plain, hosts file (address, name) and ad blocker's (||name^)


class DropUrls(DocumentRule):
    """Drops documents by their address, `metadata.url` unless `url` says otherwise.

    `domains`: the host or one of its parent domains is listed (`a.b.example.org` is under `example.org`); `urls`: the
    address without scheme, query, `www.` and closing slash begins with one listed, up to a slash; `words`: whole
    words in the address; `parts`: anywhere in it; `minimum_words`: how many different ones of `words`. Each is a list
    or a file with one entry a line (also in the form of hosts files and ad blockers; `#`, `;`, `!` are comments).
    A document without an address stays, unless `without_url` is `drop`.
    """

    kind: str = "drop_urls"
    url: str = "metadata.url"
    domains: list[str] | str | None = None
    urls: list[str] | str | None = None
    words: list[str] | str | None = None
    parts: list[str] | str | None = None
    minimum_words: int = 1
    without_url: str = "keep"

    @model_validator(mode="after")
    def _has_a_list(self) -> "DropUrls":
        if all(given is None for given in (self.domains, self.urls, self.words, self.parts)):
            raise ValueError("give at least one of domains, urls, words, parts")
        if self.without_url not in ("keep", "drop"):
            raise ValueError("without_url is `keep` or `drop`")
        return self

    def needs(self) -> tuple[str, ...]:
        return (self.url,)

    def drops(self) -> pl.Expr:
        address = pl.col(self.url).str.strip_chars().str.to_lowercase()
        tests = []
        if self.domains is not None:
            tests.append(self._listed(address))
        if self.urls is not None:
            tests.append(_without_decoration(address).is_in([_plain(one) for one in entries(self.urls, "urls")])
                         | self._below(address))
        if self.words is not None:
            found = [address.str.contains(rf"(?:^|[^a-z0-9]){literal(word)}(?:[^a-z0-9]|$)")
                     for word in entries(self.words, "words")]
            tests.append(pl.sum_horizontal(one.cast(pl.Int64) for one in found) >= self.minimum_words)
        if self.parts is not None:
            tests.append(address.str.contains("|".join(map(literal, entries(self.parts, "parts")))))
        return pl.any_horizontal(tests).fill_null(self.without_url == "drop")

    def _listed(self, address: pl.Expr) -> pl.Expr:
        listed = entries(self.domains or [], "domains")
        host = address.str.extract(HOST).str.strip_chars_end(".")
        tests = []
        for _ in range(LEVELS):
            tests.append(host.is_in(listed))
            host = host.str.replace(r"^[^.]*\.", "")
        return pl.any_horizontal(tests)

    def _below(self, address: pl.Expr) -> pl.Expr:
        """Below a listed address: `example.org/a` holds `example.org/a/b`, not `example.org/ab`."""
        listed = "|".join(literal(_plain(one)) for one in entries(self.urls or [], "urls"))
        return _without_decoration(address).str.contains(f"^(?:{listed})/")

    def why(self) -> pl.Expr:
        return pl.format("address {}", pl.col(self.url).fill_null("missing").str.head(80))


def entries(given: list[str] | str, field: str) -> list[str]:
    """The entries of a list or of a file, lower case, each once, in order. BadInput if there is none."""
    if isinstance(given, str):
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"`{field}` names {given}, which cannot be read: {error}.") from error
        read = pl.Series([line.strip() for line in lines if line.strip() and line.strip()[0] not in "#;!"],
                         dtype=pl.String)
        given = read.str.extract(ENTRY).drop_nulls().to_list()
    found = list(dict.fromkeys(one.strip().lower() for one in given if one.strip()))
    if not found:
        raise BadInput(f"`{field}` holds no entry. Give a list, or a file with one entry a line, or leave it out.")
    return found


def _without_decoration(address: pl.Expr) -> pl.Expr:
    return (address.str.replace(r"^(?:[a-z][a-z0-9+.\-]*:)?//", "").str.replace(r"^www\.", "")
            .str.replace(r"[?#].*$", "").str.strip_chars_end("/"))


def _plain(address: str) -> str:
    return str(pl.select(_without_decoration(pl.lit(address))).item())
