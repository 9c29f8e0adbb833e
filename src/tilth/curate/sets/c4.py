"""C4's rules: lines that are no sentences, and pages that are no prose.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (JMLR 21),
section 2.2, and its published code: keep only lines that end in a terminal punctuation mark and have at least 3 words;
remove lines with "javascript", with words of more than 1,000 characters and with phrases of privacy policies, and
citation marks; drop pages with "lorem ipsum", a curly bracket, a word of a list, or fewer than 5 sentences.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from tilth.curate.attributes import TEXT, Attribute
from tilth.curate.rules import DropMatching, Rewrite, Rule
from tilth.curate.sets.frame import SHORT, Limit, Profile, Profiled
from tilth.curate.sets.line_rules import DropLines
from tilth.curate.sets.words import PYTHON_SPACE, SPLITTERS, Splitter, Words
from tilth.recipe import BadInput, one_of

POLICY = ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"]
CITATION = r"\[\d*\]|\[edit\]|\[citation needed\]"
DATATROVE_CITATION = r"\[\p{Nd}*\]|\[edit\]|\[citation needed\]"
# A sentence's end, and what may close around it; an ellipsis is none.
_CLOSING = r"[\"”“’'»）)\]]*\s*\z"
ENDS_LINE = rf"(?:[\p{{Sentence_Terminal}}--.]|(?:\A|[^.])\.){_CLOSING}|[\"”]\s*\z"
DATATROVE_ENDS_LINE = r"(?:[?!\"']|(?:\A|[^.])\.|(?:\A|[^.])\.\.)\z"
DOLMA_ENDS_LINE = r"[.?!\"]\s*\z"
SENTENCE_END = r"[\p{Sentence_Terminal}--。！？｡]+[\"”’'»)\]]*(?:\s|\z)|[。！？｡]+[」』”’）]*"


class C4Sentences(Attribute):
    """Sentences: ends of sentences before white space, or full-width ones anywhere; a last one without end counts.

    `datatrove-0.10.1` counts line by line, as its sentence splitter: a word after a mark that is a word of its own.
    """

    kind: str = "c4_sentences"
    profile: Profile = "default"
    prefix: str = ""
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]

    def columns(self) -> tuple[str, ...]:
        return (f"{self.prefix}{SHORT[self.profile]}c4_sentences",)

    def measure(self, records: pl.DataFrame) -> pl.DataFrame:
        if self.profile == "datatrove-0.10.1":
            lines = Words.of_lists(records["text"].str.split("\n"))
            counts = lines.sums(spacy_sentences(self.splitter.words_of(lines.values)))
        else:
            open_end = TEXT.str.contains(r"[^\s\p{Sentence_Terminal}\"”’'»)\]」』）]\s*\z")
            counts = records.select(
                (TEXT.str.count_matches(SENTENCE_END) + open_end.cast(pl.UInt32)).cast(pl.Int64)).to_series().to_numpy()
        return pl.DataFrame({self.columns()[0]: pl.Series(counts, dtype=pl.Int64)})


def spacy_sentences(words: Words) -> np.ndarray:
    """Sentences of each text as spaCy's sentencizer counts them: a new one begins at a word, if between it and the
    word before it stands a mark that ends sentences."""
    ends = words.values.str.contains(r"\A[\p{Sentence_Terminal}]\z").to_numpy()
    marks = words.each(words.values.str.contains(r"\A\p{P}+\z").to_numpy() | ends)
    ends = words.each(ends)
    before = np.concatenate([[0], np.cumsum(ends)])[:-1]
    at = np.flatnonzero(~marks)  # the words proper
    document = words.document()[at]
    previous = np.empty(len(at), np.int64)
    previous[1:] = before[at[:-1]]
    first = np.flatnonzero(np.diff(document, prepend=-1))
    starts = np.concatenate([[0], np.cumsum(ends)])[words.starts[:-1]]
    previous[first] = starts[document[first]]
    begins = np.zeros(len(marks), np.int64)
    begins[at] = before[at] > previous
    return words.sums(begins) + 1  # datatrove's splitter finds one in an empty text too


class C4(Profiled):
    """C4's rules; each line rule and each page rule can be switched off (false or null).

    Definitions of the default profile: `lorem_ipsum`, `curly_bracket` and `bad_words` look at the whole page, as the
    paper says, before lines are removed; lines keep their white space; any script's terminal punctuation counts, with
    quotes and brackets after it; an ellipsis does not. `bad_words` is a list or a file with one word a line.
    `datatrove-0.10.1`: `lorem_ipsum` and `curly_bracket` look at the lines that the rules before them left, lines are
    stripped, apostrophes end a line, sentences are those of its splitter.
    `dolma-1.2.1` is its tagger `c4_v2`: an ellipsis ends a line; pages with "javascript" go, not lines; no sentences,
    policies, citations or long words.
    """

    PROFILES: ClassVar[dict[str, dict[str, Any]]] = {
        "datatrove-0.10.1": {"splitter": "tokens"},
        "dolma-1.2.1": {"maximum_word_length": None, "citations": False, "policy_phrases": [],
                        "minimum_sentences": None, "splitter": "python"}}

    kind: str = "c4"
    splitter: one_of(Splitter, SPLITTERS) = Field(default_factory=Splitter)  # type: ignore[valid-type]
    terminal_punctuation: bool = True
    minimum_line_words: int | None = Field(3, ge=1)
    maximum_word_length: int | None = 1000
    citations: bool = True
    javascript: bool = True
    policy_phrases: list[str] = Field(default_factory=lambda: list(POLICY))
    lorem_ipsum: bool = True
    curly_bracket: bool = True
    minimum_sentences: int | None = 5
    bad_words: list[str] | str | None = None
    bad_words_apart: bool = True

    def rules(self) -> list[Rule]:
        bad = [self._page("bad_words", bad_words_pattern(self.bad_words, self.bad_words_apart))] \
            if self.bad_words else []
        lorem = [self._page("lorem_ipsum", r"(?i)lorem ipsum")] if self.lorem_ipsum else []
        curly = [self._page("curly_bracket", r"\{")] if self.curly_bracket else []
        rules: list[Rule]
        if self.profile == "datatrove-0.10.1":
            strip = [DropLines(name=f"{self.title()} strip", breaks="python")]
            ends = Rewrite(name=f"{self.title()} strip ends", pattern=rf"\A[{PYTHON_SPACE}]+|[{PYTHON_SPACE}]+\z")
            rules = [*bad, *strip, *self._lines(), *lorem, *self._javascript(), *curly, *self._policy(), ends]
        else:
            rules = [*bad, *lorem, *curly, *self._lines(), *self._javascript(), *self._policy()]
        if self.minimum_sentences is not None:
            measured = C4Sentences(profile=self.profile, prefix=self.prefix, splitter=self.splitter)
            rules.append(Limit(name=f"{self.title()} minimum_sentences", attribute=measured.columns()[0],
                               minimum=self.minimum_sentences, measured_by=measured))
        return rules

    def _line(self, what: str, **test: Any) -> DropLines:
        return DropLines(name=f"{self.title()} {what}", **test)

    def _page(self, what: str, pattern: str) -> DropMatching:
        return DropMatching(name=f"{self.title()} {what}", pattern=pattern)

    def _lines(self) -> list[Rule]:
        rules: list[Rule] = []
        if self.maximum_word_length is not None:
            rules.append(self._line("maximum_word_length", maximum_word_length=self.maximum_word_length))
        if self.minimum_line_words is not None:
            rules.append(self._line("minimum_line_words", minimum_words=self.minimum_line_words))
        if self.citations:
            pattern = DATATROVE_CITATION if self.profile == "datatrove-0.10.1" else CITATION
            rules.append(Rewrite(name=f"{self.title()} citations", pattern=pattern))
        if self.terminal_punctuation:
            ends = {"default": ENDS_LINE, "dolma-1.2.1": DOLMA_ENDS_LINE,
                    "datatrove-0.10.1": DATATROVE_ENDS_LINE}[self.profile]
            rules.append(self._line("terminal_punctuation", not_matching=ends))
        return rules

    def _javascript(self) -> list[Rule]:
        if not self.javascript:
            return []
        if self.profile == "dolma-1.2.1":
            return [self._page("javascript", "(?i)javascript")]
        return [self._line("javascript", matching="(?i)javascript")]

    def _policy(self) -> list[Rule]:
        phrases = "|".join(literal(phrase) for phrase in self.policy_phrases)
        return [self._line("policy_phrases", matching=f"(?i){phrases}")] if phrases else []


def literal(text: str) -> str:
    """A pattern that matches exactly this text."""
    return "".join(character if character.isalnum() and character.isascii() else f"\\x{{{ord(character):x}}}"
                   for character in text)


def bad_words_pattern(words: list[str] | str, apart: bool) -> str:
    """A pattern for any of the words, in any case; `apart`: only between characters that are no part of a word."""
    if isinstance(words, str):
        try:
            words = [line.strip() for line in Path(words).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"`bad_words` names {words}, which cannot be read: {error}.") from error
    found = "|".join(literal(word) for word in sorted({word for word in words if word}))
    if not found:
        raise BadInput("`bad_words` holds no word. Give a list of words, or a file with one a line, or leave it out.")
    return rf"(?i)(?:\A|\W)(?:{found})(?:\W|\z)" if apart else f"(?i){found}"
