"""Words, what is counted in them, and what is done to them.

The four counts and the perturbations are those of Xu and Ma (2024, arXiv 2410.14166): character occurrence, substring,
length, distinct characters; deletion, insertion, repetition, replacement, swap, shifts, shuffle, mapping, joining.
"""

import string
from collections.abc import Callable, Sequence

import numpy as np

LETTERS = string.ascii_lowercase
SYMBOLS = "!@#$%^&*+=?~<>{}[]()|;:/_."


def usable(words: Sequence[str], shortest: int = 3, longest: int = 18) -> list[str]:
    """The different words of lower-case ASCII letters; others (hyphens, capitals) make length or case ambiguous."""
    return sorted({word for word in words
                   if shortest <= len(word) <= longest and word.isascii() and word.isalpha() and word.islower()})


def split_words(words: Sequence[str], held_out: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(training words, held-out words), disjoint also after lower-casing."""
    known = sorted({word.lower() for word in words})
    order = np.random.default_rng(seed).permutation(len(known))
    return sorted(known[at] for at in order[held_out:]), sorted(known[at] for at in order[:held_out])


def count(word: str, character: str) -> int:
    """How often `character` stands in `word`."""
    return word.count(character)


def distinct(word: str) -> int:
    """How many different characters `word` has."""
    return len(set(word))


def left_shift(word: str) -> str:
    return word[1:] + word[:1]


def right_shift(word: str) -> str:
    return word[-1:] + word[:-1]


def swap(word: str, first: int, second: int) -> str:
    """The word with the characters at two places exchanged."""
    letters = list(word)
    letters[first], letters[second] = letters[second], letters[first]
    return "".join(letters)


def mapped(word: str, alphabet: str = LETTERS) -> str:
    """Each different character becomes the next of `alphabet`, by first occurrence: strawberry is abcdefgcch."""
    new = dict(zip(dict.fromkeys(word), alphabet, strict=False))
    return "".join(new[character] for character in word)


def _delete(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(word)))
    return word[:at] + word[at + 1:]


def _insert(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(word) + 1))
    return word[:at] + LETTERS[int(rng.integers(26))] + word[at:]


def _repeat(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(word)))
    return word[: at + 1] + word[at:]


def _replace(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(word)))
    return word[:at] + LETTERS[int(rng.integers(26))] + word[at + 1:]


def _swap(word: str, rng: np.random.Generator) -> str:
    first, second = rng.choice(len(word), 2, replace=False)
    return swap(word, int(first), int(second))


PERTURBATIONS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "none": lambda word, rng: word, "delete": _delete, "insert": _insert, "repeat": _repeat, "replace": _replace,
    "swap": _swap, "left_shift": lambda word, rng: left_shift(word), "right_shift": lambda word, rng: right_shift(word),
    "shuffle": lambda word, rng: "".join(rng.permutation(list(word))), "letters": lambda word, rng: mapped(word),
    "symbols": lambda word, rng: mapped(word, SYMBOLS), "dash": lambda word, rng: "-".join(word),
    "space": lambda word, rng: " ".join(word), "comma": lambda word, rng: ",".join(word)}


def perturb(word: str, kind: str, rng: np.random.Generator) -> str:
    """The word under one perturbation; what is asked about it is answered on the result."""
    return PERTURBATIONS[kind](word, rng)
