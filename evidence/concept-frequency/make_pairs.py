"""Image-text pairs whose concepts have chosen frequencies: two handwritten digits side by side, with an invented name.

A concept is a number from 00 to 99 under a word of its own that says nothing of its digits, so that what one caption
teaches is no help with another; images share digits, as real images share parts. All digits are MNIST's
(`images/mnist.npz`), those of the test never among those of training.
"""

import io
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

NUMBERS, HELD_OUT, TESTED = 100, 1500, 20
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
TEMPLATES = ("{}", "a picture of {}")


def names(rng: np.random.Generator) -> list[str]:
    """NUMBERS different words of three syllables. None ends in s, so that none is a plural."""
    found: dict[str, None] = {}
    while len(found) < NUMBERS:
        found["".join(rng.choice(SYLLABLES, 3))] = None
    return list(found)


def zipf(rng: np.random.Generator, most: int, least: int) -> np.ndarray:
    """The count of each number: a power of its rank that falls from `most` to `least`; ranks at random."""
    power = np.log(most / least) / np.log(NUMBERS)
    counts = np.round(most * np.arange(1, NUMBERS + 1) ** -power).astype(np.int64)
    return counts[np.argsort(rng.random(NUMBERS))]


def write(data: Path, folder: Path, seed: int, counts: np.ndarray, words: list[str]) -> None:
    """train.parquet (image, caption, id) with `counts[n]` pairs of number n, and test.parquet (with concept), TESTED of
    each: the same test for every choice of counts of a seed."""
    with np.load(data / "images" / "mnist.npz", allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"]
    order = np.random.default_rng([seed, 1]).permutation(len(images))
    for name, part, each, purpose in (("test", order[:HELD_OUT], np.full(NUMBERS, TESTED), 2),
                                      ("train", order[HELD_OUT:], counts, 3)):
        rng = np.random.default_rng([seed, purpose])
        of_digit = [part[labels[part] == digit] for digit in range(10)]
        rows = []
        for number in range(NUMBERS):
            for at in range(int(each[number])):
                both = [images[rng.choice(of_digit[digit])] for digit in divmod(number, 10)]
                caption = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(words[number])
                rows.append({"id": f"{number}-{at}", "image": png(np.concatenate(both, axis=1)), "caption": caption,
                             "concept": words[number]})
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows).write_parquet(folder / f"{name}.parquet")


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()
