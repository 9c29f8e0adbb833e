"""Loops over bytes and words, compiled by Numba: what `tilth.curate.sets.words` counts."""

import numpy as np

from tilth.curate.loops import loop

START, PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # of the hash FNV-1a, 64 bits


@loop
def runs(text: np.ndarray, offsets: np.ndarray, space: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, ...]:
    """The runs of bytes between white space.

    text: UTF-8 (uint8); document d is text[offsets[d]:offsets[d + 1]]; space: which code points are white space (bool;
    those beyond it are not); kinds: of the 256 bytes, 1 is white space, and 2 may begin it. Returns the first and
    past-the-last byte of each run (int64), a hash of it (uint64), and where the runs of the documents begin among them
    (int64, documents + 1).
    """
    most = len(text) // 2 + len(offsets)
    firsts, ends, hashes = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint64)
    starts, found = np.empty(len(offsets), np.int64), 0
    for document in range(len(offsets) - 1):
        starts[document] = found
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            first, value = at, START
            while at < end:
                kind = kinds[text[at]]
                if kind and (kind == 1 or _wide_space(text, at, space)):
                    break
                value = (value ^ text[at]) * PRIME
                at += 1
            if at > first:
                firsts[found], ends[found], hashes[found] = first, at, mixed(value)
                found += 1
            if at < end:
                byte = text[at]
                at += 1 if byte < 128 else 2 if byte < 0xE0 else 3
    starts[len(offsets) - 1] = found
    return firsts[:found], ends[:found], hashes[:found], starts


@loop
def _wide_space(text: np.ndarray, at: int, space: np.ndarray) -> bool:
    """Whether a character of two or three bytes that begins here is white space."""
    byte = text[at]
    if byte < 0xE0:
        point = (byte & 31) << 6 | text[at + 1] & 63
    else:
        point = (byte & 15) << 12 | (text[at + 1] & 63) << 6 | text[at + 2] & 63
    return point < len(space) and space[point]


@loop
def mixed(value: np.uint64) -> np.uint64:
    """`tilth.curate.ngrams.mixed` of one number."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@loop
def numbered(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each hash (int32), in the order in which they first occur, and where that is (int32)."""
    bits = 4
    while (1 << bits) < 2 * len(hashes):
        bits += 1
    slots, keys = np.zeros(1 << bits, np.int32), np.empty(1 << bits, np.uint64)  # slots: number + 1, 0 where free
    codes, first, known = np.empty(len(hashes), np.int32), np.empty(len(hashes), np.int32), 0
    for at in range(len(hashes)):
        value = hashes[at]
        slot = np.int64(value >> np.uint64(64 - bits))
        while slots[slot] and keys[slot] != value:
            slot = (slot + 1) & ((1 << bits) - 1)
        if not slots[slot]:
            first[known] = at
            known += 1
            slots[slot], keys[slot] = known, value
        codes[at] = slots[slot] - 1
    return codes, first[:known]


@loop
def pieces(text: np.ndarray, firsts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the text laid end to end (uint8), and their offsets (int64, pieces + 1)."""
    offsets = np.zeros(len(firsts) + 1, np.int64)
    for piece in range(len(firsts)):
        offsets[piece + 1] = offsets[piece] + ends[piece] - firsts[piece]
    out, at = np.empty(offsets[-1], np.uint8), 0
    for piece in range(len(firsts)):
        for place in range(firsts[piece], ends[piece]):
            out[at] = text[place]
            at += 1
    return out, offsets


@loop
def expanded(codes: np.ndarray, starts: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each number replaced by those of its parts, parts[code] up to parts[code + 1]; and the documents' starts."""
    total = 0
    for code in codes:
        total += parts[code + 1] - parts[code]
    out, places, at = np.empty(total, np.int32), np.empty_like(starts), 0
    for document in range(len(starts) - 1):
        places[document] = at
        for code in codes[starts[document]:starts[document + 1]]:
            for part in range(parts[code], parts[code + 1]):
                out[at] = part
                at += 1
    places[len(starts) - 1] = at
    return out, places


@loop
def sums(codes: np.ndarray, starts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of values[code] over the words of each document (int64)."""
    out = np.zeros(len(starts) - 1, np.int64)
    for document in range(len(out)):
        total = 0
        for code in codes[starts[document]:starts[document + 1]]:
            total += values[code]
        out[document] = total
    return out


@loop
def middles(codes: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sum of both middle lengths of the words of each document (int64), 0 without words; by counting lengths."""
    out, counts = np.zeros(len(starts) - 1, np.int64), np.zeros(256, np.int64)
    for document in range(len(out)):
        mine = codes[starts[document]:starts[document + 1]]
        if not len(mine):
            continue
        counts[:] = 0
        for code in mine:
            counts[min(lengths[code], 255)] += 1
        for place in ((len(mine) - 1) // 2, len(mine) // 2):
            length, before = 0, counts[0]
            while before <= place:
                length += 1
                before += counts[length]
            out[document] += np.sort(lengths[mine])[place] if length == 255 else length
    return out
