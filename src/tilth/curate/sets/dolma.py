"""Dolma's rule sets, as named in version 1.6 of the corpus.

Soldaini et al. 2024, "Dolma: an Open Corpus of Three Trillion Tokens" (arXiv 2402.00159) and the toolkit's
configurations. What is not here has rules of its own: duplicates, language, toxicity and personal data.
"""

from typing import Literal

import polars as pl

from tilth.curate.attributes import TEXT, Attribute, Words
from tilth.curate.rules import Keep, Rule, RuleSet
from tilth.curate.sets.c4 import C4
from tilth.curate.sets.frame import Limit
from tilth.curate.sets.gopher import GopherQuality
from tilth.curate.sets.repetition import GopherRepetition
from tilth.curate.sets.token_repetition import TokenRepetition


class StrippedCharacters(Attribute):
    """Characters without the white space at the ends."""

    kind: str = "stripped_characters"

    def expression(self) -> pl.Expr:
        return TEXT.str.strip_chars().str.len_chars()


class DolmaWeb(RuleSet):
    """Dolma's web rules: any of Gopher's rules drops the page; lines without terminal punctuation go; so do pages
    with long repetitions of tokens, and empty ones.

    Gopher's rules see the page before lines are taken out, as in Dolma, where all is measured first. Its released
    configurations misspell the three top n-gram rules, which never act there; here they do. `profile` is that of the
    sets within; `english` names an attribute with the probability that the text is English, and keeps from 0.5.
    """

    kind: str = "dolma_web"
    profile: Literal["default", "dolma-1.2.1"] = "dolma-1.2.1"
    english: str | None = None
    minimum_english: float = 0.5
    maximum_repeated_characters: float | None = 99
    minimum_characters: int | None = 1

    def rules(self) -> list[Rule]:
        name = self.title()
        rules: list[Rule] = _english(name, self.english, self.minimum_english)
        rules += [GopherQuality(profile=self.profile, name=f"{name} gopher_quality"),
                  GopherRepetition(profile=self.profile, name=f"{name} gopher_repetition"),
                  TokenRepetition(maximum_characters=self.maximum_repeated_characters,
                                  name=f"{name} token_repetition"),
                  C4(profile=self.profile, name=f"{name} c4", minimum_line_words=None, maximum_word_length=None,
                     citations=False, javascript=False, policy_phrases=[], lorem_ipsum=False, curly_bracket=False,
                     minimum_sentences=None)]
        return rules + _not_empty(name, self.minimum_characters)


class DolmaBooks(RuleSet):
    """Dolma's rules for books and encyclopedias: at least 25 words, no long repetitions of tokens, not empty; `english`
    as in `dolma_web` (used for books)."""

    kind: str = "dolma_books"
    minimum_words: int | None = 25
    english: str | None = None
    minimum_english: float = 0.5
    maximum_repeated_characters: float | None = 99
    minimum_characters: int | None = 1

    def rules(self) -> list[Rule]:
        name = self.title()
        rules: list[Rule] = _english(name, self.english, self.minimum_english)
        if self.minimum_words is not None:
            rules.append(Limit(name=f"{name} minimum_words", attribute="words", measured_by=Words(),
                               minimum=self.minimum_words))
        rules.append(TokenRepetition(maximum_characters=self.maximum_repeated_characters,
                                     name=f"{name} token_repetition"))
        return rules + _not_empty(name, self.minimum_characters)


def _english(name: str, attribute: str | None, minimum: float) -> list[Rule]:
    return [Keep(name=f"{name} english", attribute=attribute, minimum=minimum)] if attribute else []


def _not_empty(name: str, minimum: int | None) -> list[Rule]:
    return [] if minimum is None else [Limit(name=f"{name} minimum_characters", attribute="stripped_characters",
                                             measured_by=StrippedCharacters(), minimum=minimum)]
