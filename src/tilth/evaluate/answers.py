"""What a written answer says: normalised text, numbers in digits or words, and whether it is right."""

import re
import string
import unicodedata
from collections.abc import Sequence

WORDS = {word: value for value, words in enumerate(
    ["zero none", "one once", "two twice", "three thrice", "four", "five", "six", "seven", "eight", "nine", "ten",
     "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"])
    for word in words.split()}
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)|(?<![\w.])[-+]?\.\d+")
_WORD = re.compile(r"\b(" + "|".join(sorted(WORDS, key=len, reverse=True)) + r")\b", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and extra white space, as in SQuAD's scorer (Rajpurkar et al. 2016)."""
    text = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, right: Sequence[str]) -> bool:
    """Whether the normalised answer is one of the right ones."""
    return normalised(answer) in {normalised(one) for one in right}


def last_number(text: str, words: bool = True) -> float | None:
    """The last number of an answer, in digits or (if `words`) spelt out up to twenty; None where there is none."""
    found = [(match.start(), float(match.group().replace(",", ""))) for match in _NUMBER.finditer(text)]
    if words:
        found += [(match.start(), float(WORDS[match.group().lower()])) for match in _WORD.finditer(text)]
    return max(found)[1] if found else None


def number_match(answer: str, right: Sequence[str], tolerance: float = 1e-6) -> bool:
    """Whether the last number of the answer equals the last number of one of the right answers."""
    value = last_number(answer)
    wanted = [last_number(one) for one in right]
    return value is not None and any(one is not None and abs(value - one) <= tolerance * max(1.0, abs(one))
                                     for one in wanted)


def word_match(answer: str, right: str, others: Sequence[str] = ()) -> bool:
    """Whether the answer has the word `right`, bounded, and none of `others`: "No idea" is not an answer "no" where
    the word stands alone on its line."""
    first = re.split(r"[.,;!\n]", answer.strip(), maxsplit=1)[0].strip()
    return first.lower() == right.lower() and not any(
        re.search(rf"\b{re.escape(one)}\b", answer, re.IGNORECASE) for one in others)
