"""CT-LLM's rules for Chinese: the usual web rules in characters instead of words.

Du et al. 2024, "Chinese Tiny LLM" (arXiv 2404.04167), and its released cleaner. Everything is measured on the NFKC
form of the text. Where the released code has a fault, this does what it means to: the share of characters in
duplicated n-grams is counted by place (the code counts distinct characters, which tends to 0 in long texts); the rules
for lines act (the code never calls them).
"""

from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import TEXT, Attribute
from tilth.curate.rules import DocumentRule, Rewrite, Rule
from tilth.curate.sets.frame import Limit, MeasuredSet
from tilth.curate.sets.ratios import ratio
from tilth.curate.sets.repeats import Repeats, repeats
from tilth.curate.sets.words import Characters as CharacterSplitter
from tilth.curate.sets.words import Jieba, Words

TOP, DUPLICATED = range(2, 5), range(5, 11)
COLUMNS = ("sentences", "characters", "hashes", "ellipses", "brackets", "digits", "cut_lines", "bullet_lines",
           "punctuation", "distinct", "entropy", *(f"top_{n}_gram" for n in TOP),
           *(f"duplicated_{n}_grams" for n in DUPLICATED))
BULLETS = "•●○■□▪▫▶►◆◇★☆·‣⁃◦➢✓*-"
CUT = r"(?m)(?:(?i:read ?more)|展开|更多|\.\.\.)[^\S\n]*$"
URLS = (r"(?:https?://|www\.)[^\s,\p{Han}]+", r"[\w\-]+(?:\.[\w\-]+){3,}")
HALF_WIDTH = {"。": ".", "！": "!", "？": "?", "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "“": '"',
              "”": '"', "‘": "'", "’": "'"}


class ChineseMeasures(Attribute):
    """The measures of `Chinese`; shares are of characters unless they name lines."""

    kind: str = "chinese"
    prefix: str = ""

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}chinese_{name}" for name in COLUMNS)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        brackets = records.select(_characters(r"【[^】]*】") - 2 * TEXT.str.count_matches("【[^】]*】").cast(pl.Int64),
                                  TEXT.str.len_chars().cast(pl.Int64).alias("all"))
        frame = records.select(TEXT.str.normalize("NFKC"))
        of = frame.select(
            sentences=TEXT.str.count_matches(r"[^.!…?;\"]*[^\s.!…?;\"][^.!…?;\"]*").cast(pl.Int64),
            characters=TEXT.str.len_chars().cast(pl.Int64), hashes=TEXT.str.count_matches("#+").cast(pl.Int64),
            ellipses=TEXT.str.count_matches(r"…+|\.\.+").cast(pl.Int64), digits=_characters(r"\p{Nd}+"),
            marks=_characters(r"[\p{P}\p{S}]+"), lines=TEXT.str.count_matches(r"(?m)^.*\S").cast(pl.Int64),
            cut=TEXT.str.count_matches(CUT).cast(pl.Int64),
            bullets=TEXT.str.count_matches(rf"(?m)^[^\S\n]*[{BULLETS.replace('-', chr(92) + '-')}]").cast(pl.Int64))
        by = {name: of[name].to_numpy() for name in of.columns}
        whole = by["characters"]
        values = [by["sentences"], whole, ratio(by["hashes"], whole), ratio(by["ellipses"], whole),
                  ratio(brackets["text"].to_numpy(), brackets["all"].to_numpy()),
                  ratio(by["digits"], whole - by["marks"]), ratio(by["cut"], by["lines"]),
                  ratio(by["bullets"], by["lines"]), ratio(by["marks"], whole), *distribution(frame["text"]),
                  *self._ngrams(frame["text"], whole)]
        return pl.DataFrame(dict(zip(self.columns(), values, strict=True)))

    def _ngrams(self, texts: pl.Series, whole: np.ndarray) -> list[np.ndarray]:
        """Top n-grams: (count - 1) x n; duplicated ones: places covered. Of all characters but white space."""
        words = CharacterSplitter().split(texts)
        document, parts = words.document(), np.zeros((len(TOP) + len(DUPLICATED), len(whole)), np.int64)
        for chunk in repeats(words, range(TOP.start, DUPLICATED.stop)):
            for found in chunk:
                row = parts[found.size - TOP.start]
                if found.size in TOP:
                    np.maximum.at(row, document[found.places[found.first]], (found.counts() - 1) * found.size)
                else:
                    places = np.sort(found.places)
                    np.add.at(row, document[places], new_places(places, found))
        return [ratio(part, whole) for part in parts]


def new_places(places: np.ndarray, found: Repeats) -> np.ndarray:
    """How many places each window covers that the one before it does not."""
    return np.minimum(np.diff(places, prepend=places[:1] - found.size), found.size)


def distribution(texts: pl.Series) -> list[np.ndarray]:
    """Distinct characters per character, and the entropy of the characters in nats, of each text."""
    words = Words.of_lists(texts.to_frame("text").select(
        pl.when(pl.col("text") == "").then(pl.col("text").str.split("\n").list.head(0))
        .otherwise(pl.col("text").str.split(""))).to_series())
    counts = words.counts()
    pairs = np.sort(words.document().astype(np.uint64) << np.uint64(32)
                    | (words.values.hash(seed=0).to_numpy() >> np.uint64(32)))
    first = np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))
    times = np.diff(np.append(first, len(pairs)))
    document = (pairs[first] >> np.uint64(32)).astype(np.int64)
    part = times / counts[document]
    entropy = np.bincount(document, -part * np.log(part), len(counts))
    return [ratio(np.bincount(document, minlength=len(counts)), counts), entropy]


class ChineseWordLength(Attribute):
    """Mean length of the words that jieba finds."""

    kind: str = "chinese_word_length"

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        words = Jieba().split(records["text"])
        return pl.DataFrame({"chinese_word_length": ratio(words.sums(words.lengths()), words.counts())})


class NormalizeChinese(DocumentRule):
    """Full-width punctuation to half-width."""

    kind: str = "normalize_chinese"
    rewrites_text: ClassVar[bool] = True

    def rewrites(self) -> pl.Expr:
        return TEXT.str.replace_many(list(HALF_WIDTH), list(HALF_WIDTH.values()))


class Chinese(MeasuredSet):
    """CT-LLM's rules for Chinese. A threshold of null switches its rule off.

    `half_width` and `links` rewrite the text after the rules: punctuation to half width, addresses out.
    `minimum_word_length` and `maximum_word_length` (1.3 and 10 in the paper) need the package jieba and are off by
    default. The limit of 10,000 characters is meant for web pages.
    """

    LIMITS: ClassVar[dict[str, tuple[str, str]]] = {
        "minimum_sentences": ("sentences", "minimum"), "minimum_characters": ("characters", "minimum"),
        "maximum_characters": ("characters", "maximum"), "maximum_hashes": ("hashes", "maximum"),
        "maximum_ellipses": ("ellipses", "maximum"), "maximum_brackets": ("brackets", "maximum"),
        "maximum_digits": ("digits", "maximum"), "maximum_cut_lines": ("cut_lines", "maximum"),
        "maximum_bullet_lines": ("bullet_lines", "maximum"), "minimum_punctuation": ("punctuation", "minimum"),
        "minimum_distinct": ("distinct", "minimum"), "minimum_entropy": ("entropy", "minimum"),
        **{f"maximum_top_{n}_gram": (f"top_{n}_gram", "maximum") for n in TOP},
        **{f"maximum_duplicated_{n}_grams": (f"duplicated_{n}_grams", "maximum") for n in DUPLICATED}}
    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {}

    kind: str = "chinese"
    minimum_sentences: int | None = 2
    minimum_characters: int | None = 50
    maximum_characters: int | None = 10_000
    maximum_hashes: float | None = 0.1
    maximum_ellipses: float | None = 0.1
    maximum_brackets: float | None = 0.1
    maximum_digits: float | None = 0.3
    maximum_cut_lines: float | None = 0.3
    maximum_bullet_lines: float | None = 0.9
    minimum_punctuation: float | None = 1e-9
    minimum_distinct: float | None = 0.1
    minimum_entropy: float | None = 3
    maximum_top_2_gram: float | None = 0.2
    maximum_top_3_gram: float | None = 0.18
    maximum_top_4_gram: float | None = 0.16
    maximum_duplicated_5_grams: float | None = 0.6
    maximum_duplicated_6_grams: float | None = 0.6
    maximum_duplicated_7_grams: float | None = 0.6
    maximum_duplicated_8_grams: float | None = 0.6
    maximum_duplicated_9_grams: float | None = 0.6
    maximum_duplicated_10_grams: float | None = 0.6
    minimum_word_length: float | None = Field(None, ge=0)
    maximum_word_length: float | None = Field(None, ge=0)
    half_width: bool = False
    links: bool = True

    def attribute(self) -> ChineseMeasures:
        return ChineseMeasures(prefix=self.prefix)

    def _plain(self, measured: Attribute) -> list[str]:
        return list(COLUMNS)

    def rules(self) -> list[Rule]:
        made = super().rules()
        if self.minimum_word_length is not None or self.maximum_word_length is not None:
            made.append(Limit(name=f"{self.title()} word_length", attribute="chinese_word_length",
                              minimum=self.minimum_word_length, maximum=self.maximum_word_length,
                              measured_by=ChineseWordLength()))
        if self.links:
            made.append(Rewrite(name=f"{self.title()} links", pattern="|".join(URLS)))
        if self.half_width:
            made.append(NormalizeChinese(name=f"{self.title()} half_width"))
        return made


def _characters(pattern: str) -> pl.Expr:
    """Characters that a pattern covers."""
    left = TEXT.str.replace_all(pattern, "").str.len_chars().cast(pl.Int64)
    return TEXT.str.len_chars().cast(pl.Int64) - left
