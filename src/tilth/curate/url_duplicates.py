"""Duplicates by address: the first document of a URL stays."""

import polars as pl

from tilth.curate.attributes import record_column
from tilth.curate.exact import digests
from tilth.curate.rules import CorpusIndex, CorpusRule
from tilth.recipe import BadInput

HIGH, LOW = "url_duplicates_high", "url_duplicates_low"
PARTS = r"^(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://)?(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)(?::([0-9]*))?([^?#]*)(\?[^#]*)?"
TRACKING = r"(^|&)(?:utm_[^&=]*|gclid|fbclid|msclkid|mc_[ce]id)=[^&]*"


class UrlDuplicates(CorpusRule):
    """Drops every document whose URL came before; documents without a URL stay.

    URLs are compared after RFC 3986 (6.2): scheme and host in lower case, no default port, no user, no fragment, an
    empty path is `/`. With `loose`, also http as https, without `www.`, tracking parameters and last slash.
    """

    kind: str = "url_duplicates"
    column: str = "metadata.url"
    loose: bool = True

    def signature(self, records: pl.DataFrame) -> pl.DataFrame:
        url = records.select(self.key().alias("url")).to_series()
        found = digests(url.fill_null(""))
        names = zip((HIGH, LOW), found.T, strict=True)
        return pl.DataFrame([pl.Series(name, half, dtype=pl.UInt64).set(url.is_null(), None) for name, half in names])

    def key(self) -> pl.Expr:
        """The URL in the form in which it is compared; null without one."""
        raw = record_column(self.column).str.strip_chars()
        scheme, host, port, path, query = (raw.str.extract(PARTS, at).fill_null("") for at in range(1, 6))
        scheme, query = scheme.str.to_lowercase(), query.str.slice(1)
        host = host.str.to_lowercase().str.strip_suffix(".")
        if self.loose:
            scheme = scheme.replace("http", "https")
            host = host.str.strip_prefix("www.")
            query = query.str.replace_all(TRACKING, "").str.strip_prefix("&")
            path = path.str.strip_chars_end("/")
        port = pl.when(port.is_in(["80", "443"])).then(pl.lit("")).otherwise(port)
        path = pl.when(path == "").then(pl.lit("/")).otherwise(path)
        whole = pl.concat_str(scheme, pl.lit("://"), host, pl.lit(":"), port, path, pl.lit("?"), query)
        return pl.when(raw.is_null() | (raw == "")).then(None).otherwise(whole)

    def decide(self, index: CorpusIndex) -> pl.Series:
        frame = index.select("row", HIGH, LOW)
        if frame.height and frame[HIGH].null_count() == frame.height:
            raise BadInput(f"`{self.title()}` compares '{self.column}', but no document has it. Set `column` of the "
                           f"rule to where the URLs are (metadata.KEY).")
        first = pl.col("row").first().over(HIGH, LOW)
        repeats = pl.col(HIGH).is_not_null() & (first != pl.col("row"))
        return frame.select(pl.when(repeats).then(first).alias("original")).to_series()
