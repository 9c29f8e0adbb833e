"""The scores of a linear classifier over hashed n-grams, straight from UTF-8, compiled by Numba.

The features are those of `tilth.curate.classifier.Features`, to the bit; there they come from arrays of
`tilth.curate.ngrams`, a block of texts at a time.
"""

import numpy as np

from tilth.curate.loops import loop
from tilth.curate.loops_words import mixed
from tilth.curate.ngrams import BASE, CHARACTER, SINGLE, STEP

POWER, HIGH, LOW = np.uint64(BASE), SINGLE, CHARACTER


@loop
def sums(text: np.ndarray, offsets: np.ndarray, table: np.ndarray, characters: bool, smallest: int, order: int,
         bits: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the weights of each text's n-grams (float64), and how many there are (int64).

    text: UTF-8 (uint8); text t is text[offsets[t]:offsets[t + 1]]; table: what each code point is to words (uint32, see
    `tilth.curate.ngrams`); characters: whether n-grams are of characters, not of words.
    """
    totals, counts = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1, np.int64)
    rolled = np.zeros(order + 1, np.uint64)  # of the last 1, 2 ... units
    for number in range(len(offsets) - 1):
        at, end, units, total = offsets[number], offsets[number + 1], 0, 0.0
        value, power, inside = np.uint64(0), np.uint64(1), False
        while at <= end:
            sign, size = np.uint32(0), 1  # as if white space ended the text
            if at < end:
                byte = text[at]
                if byte < 128:
                    sign = table[byte]
                else:
                    point, size = _decoded(text, at)
                    sign = table[point]
            at += size
            apart = characters or sign >= HIGH
            if inside and (sign == 0 or apart):  # a word ends before this character
                total += _added(rolled, units, mixed(value), smallest, order, bits, weights)
                units, value, power, inside = units + 1, np.uint64(0), np.uint64(1), False
            if sign == 0:
                continue
            if apart:
                letter = np.uint64(sign & LOW)
                total += _added(rolled, units, mixed(letter * STEP if characters else letter), smallest, order, bits,
                                weights)
                units += 1
            else:
                value, power, inside = value + np.uint64(sign) * power, power * POWER, True
        totals[number] = total
        for length in range(smallest, order + 1):
            counts[number] += max(units - length + 1, 0)
    return totals, counts


@loop
def _added(rolled: np.ndarray, before: int, unit: np.uint64, smallest: int, order: int, bits: int,
           weights: np.ndarray) -> float:
    """The weights of the n-grams that end with this unit, of which there were `before` in its text."""
    total = 0.0
    for length in range(min(order, before + 1), 0, -1):
        rolled[length] = rolled[length - 1] * STEP + unit if length > 1 else unit
        if length >= smallest:
            total += weights[np.int64(rolled[length] >> np.uint64(64 - bits))]
    return total


@loop
def _decoded(text: np.ndarray, at: int) -> tuple[np.int64, int]:
    """The code point that begins here, of two to four bytes, and how many they are."""
    byte = np.int64(text[at])
    if byte < 0xE0:
        return (byte & 31) << 6 | np.int64(text[at + 1]) & 63, 2
    if byte < 0xF0:
        return (byte & 15) << 12 | (np.int64(text[at + 1]) & 63) << 6 | np.int64(text[at + 2]) & 63, 3
    return ((byte & 7) << 18 | (np.int64(text[at + 1]) & 63) << 12 | (np.int64(text[at + 2]) & 63) << 6
            | np.int64(text[at + 3]) & 63), 4

