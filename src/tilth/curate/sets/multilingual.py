"""Quality rules for many languages: what is the same in all of them, and stop words of each.

The recipe of the multilingual web corpora (Laurençon et al. 2022, ROOTS, arXiv 2303.03915; Penedo et al. 2025,
FineWeb2, arXiv 2506.20920): Gopher's rules with the stop words of the document's own language, and FineWeb's rules for
lines, which know the terminal punctuation of all scripts. Languages written without spaces are measured in characters,
so that limits in words do not apply to them.
"""

from typing import ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import TEXT, Attribute, record_column
from tilth.curate.language import DETECTORS, Detector
from tilth.curate.rules import Keep, Rule, RuleSet
from tilth.curate.sets.fineweb import FineWeb
from tilth.curate.sets.frame import Limit
from tilth.curate.sets.gopher import GopherQuality, as_word
from tilth.recipe import one_of

# The most frequent words that are short, and words of hardly any other language taken together.
STOP_WORDS: dict[str, list[str]] = {code: words.split() for code, words in {
    "cs": "a se na je že to do byl jako za jsem ale",
    "da": "og i det at en den til er som på de med",
    "de": "der die und in den von zu das mit sich des auf ist nicht",
    "el": "και το να του η της με που την από για είναι",
    "en": "the be to of and that have with",
    "es": "de la que el en y los del las por con una para",
    "fi": "ja on ei se hän että oli joka mutta kun niin",
    "fr": "de la le et les des en un une que dans est pour qui",
    "hu": "a az és hogy nem is egy volt meg ez csak",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan",
    "it": "di e che la il un per in una non con del sono",
    "nl": "de het een van en in is dat op te zijn met niet",
    "no": "og i det er som på en til av for at med",
    "pl": "w i z na nie się do to że jest o jak",
    "pt": "de a o que e do da em um para com uma os",
    "ro": "de în și a la cu pe că este din nu mai",
    "ru": "и в не на что с по это как к из у",
    "sv": "och i att det som en på är av för med den",
    "tr": "ve bir bu da için de ile çok ama olarak daha",
    "uk": "і в не на що з до це як та у за",
    "vi": "và của là có trong được cho không các một với",
}.items()}
UNSPACED = ["zh", "ja", "th", "lo", "km", "my", "bo", "yue", "wuu"]


class OfLanguage(Attribute):
    """Base of what depends on the document's language: a column or key of the metadata (`language`), or, where the
    records do not say, what a `detector` finds."""

    language: str = "metadata.language"
    detector: one_of(Detector, DETECTORS) | None = None  # type: ignore[valid-type]

    def reads(self) -> list[str]:
        return self.detector.reads() if self.detector is not None else []

    def codes(self, records: pl.DataFrame) -> pl.Series:
        """The first letters of the code (`pt` of `pt-BR`); null if unknown."""
        if self.detector is not None:
            given = self.detector.of(records["text"])["language"]
        else:
            given = records.select(record_column(self.language)).to_series()
        return given.str.to_lowercase().str.extract("^([a-z]+)")


class LanguageStopWords(OfLanguage):
    """How many different stop words of the document's language occur; null for a language without a list."""

    kind: str = "language_stop_words"
    stop_words: dict[str, list[str]] = Field(default_factory=lambda: dict(STOP_WORDS))

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        # Language by language, so that a document is searched for the words of its own only.
        language = self.codes(records)
        counts = np.full(records.height, -1, np.int64)
        for code, words in sorted(self.stop_words.items()):
            at = np.flatnonzero((language == code).fill_null(False).to_numpy())
            if len(at) and words:
                found = [TEXT.str.contains(as_word(word)).cast(pl.Int64) for word in dict.fromkeys(words)]
                counts[at] = records[at].select(pl.sum_horizontal(found)).to_series().to_numpy()
        column = pl.Series(counts).replace(-1, None)
        return pl.DataFrame({self.columns()[0]: column})


class IsUnspaced(OfLanguage):
    """1 if the text is written without spaces between words, by its language or, without one, by its letters."""

    kind: str = "unspaced"
    unspaced: list[str] = Field(default_factory=lambda: list(UNSPACED))

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        scripts = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
        letters = TEXT.str.count_matches(r"\p{L}")
        by_letters = TEXT.str.count_matches(scripts) * 2 > letters
        known = self.codes(records).is_in(self.unspaced)
        return records.select(pl.coalesce(known, by_letters).cast(pl.Int64).alias(self.columns()[0]))


class StopWordsIfKnown(Keep):
    """Keeps documents with enough stop words of their language, and those of languages without a list."""

    kind: str = "stop_words_if_known"
    measured_by: LanguageStopWords

    def measures(self) -> tuple[Attribute, ...]:
        return (self.measured_by,)

    def drops(self) -> pl.Expr:
        return pl.col(self.attribute) < self.minimum


class IfSpaced(Limit):
    """A limit in words, for languages that are written with spaces."""

    kind: str = "if_spaced"
    unspaced: IsUnspaced

    def needs(self) -> tuple[str, ...]:
        return (self.attribute, "unspaced")

    def measures(self) -> tuple[Attribute, ...]:
        return (self.measured_by, self.unspaced)

    def drops(self) -> pl.Expr:
        return ~self.holds() & (pl.col("unspaced") == 0)


class Multilingual(RuleSet):
    """Gopher's and FineWeb's rules (default profiles) for documents of many languages.

    `language` is a column or a key of the metadata with a language code; what follows the first letters (`pt-BR`) does
    not matter. `detector` finds the language where the records do not say it. `stop_words` adds to the built-in lists,
    or replaces those of a language. Thresholds of the sets within are given as `gopher` and `fineweb`.
    """

    WORD_LIMITS: ClassVar[tuple[str, ...]] = ("words", "word_length", "alphabetic_words", "newlines")

    kind: str = "multilingual"
    language: str = "metadata.language"
    detector: one_of(Detector, DETECTORS) | None = None  # type: ignore[valid-type]
    stop_words: dict[str, list[str]] = Field(default_factory=dict)
    minimum_stop_words: int | None = 2
    unspaced: list[str] = Field(default_factory=lambda: list(UNSPACED))
    gopher: dict[str, float | None] = Field(default_factory=dict)
    fineweb: dict[str, float | None] = Field(default_factory=dict)

    def rules(self) -> list[Rule]:
        name, unspaced = self.title(), IsUnspaced(
            language=self.language, detector=self.detector, unspaced=self.unspaced)
        sets: list[RuleSet] = [GopherQuality(name=name, **{"minimum_stop_words": None, **self.gopher}),
                               FineWeb(name=name, **self.fineweb)]
        made: list[Rule] = []
        for rule in [rule for one in sets for rule in one.rules()]:
            if isinstance(rule, Limit) and rule.attribute.endswith(self.WORD_LIMITS):
                rule = IfSpaced(**{**dict(rule), "kind": "if_spaced"}, unspaced=unspaced)
            made.append(rule)
        if self.minimum_stop_words is not None:
            measured = LanguageStopWords(language=self.language, detector=self.detector,
                                         stop_words={**STOP_WORDS, **self.stop_words})
            made.append(StopWordsIfKnown(name=f"{name} minimum_stop_words", attribute="language_stop_words",
                                         minimum=self.minimum_stop_words, measured_by=measured))
        return made
