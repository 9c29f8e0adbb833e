"""Byte-pair encoding of whole batches: each distinct piece of text is encoded once, by the library, and looked up ever
after. Pieces are found, hashed, compared and joined as arrays, with no Python loop over texts or tokens.

Ids are those of the library: pieces are where its regular expression puts them (`tilth.data.splitting`, tested against
it), a piece that is seen for the first time goes through its merges, and one that is found by its hash is compared
byte by byte with what is remembered.
"""

from collections.abc import Sequence

import numpy as np
import tokenizers

from tilth.data.splitting import SENTINEL, piece_starts

SLOTS = 1 << 21  # of the table; half of them may be taken before it is emptied
LONGEST = 128  # bytes of a piece that is remembered
BATCH = 1 << 17  # characters that are encoded at once: the arrays of a batch stay in the caches
BASE = 0x9E3779B97F4A7C15  # odd, so that multiplication by its powers can be undone
PROBES = 16


class Memory:
    """Pieces of text and their ids, found by a 64-bit hash in a table with open addressing.

    piece bytes and ids of entry e: `content[start[e]:start[e] + size[e]]`, `ids[first[e]:first[e] + count[e]]`.
    """

    def __init__(self, slots: int = SLOTS):
        self.mask, self.shift = slots - 1, 64 - (slots - 1).bit_length()
        self.hash_of = np.zeros(slots, np.uint64)
        self.entry_of = np.full(slots, -1, np.int32)
        self.entries = 0
        self.start, self.size, self.first, self.count = (np.zeros(1024, np.int64) for _ in range(4))
        self.content, self.ids = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint32)
        self.bytes = self.tokens = 0

    @property
    def full(self) -> bool:
        return 2 * self.entries > self.mask

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The entry of each hash (n,) uint64, int32 (n,); -1 where there is none."""
        slots = self._slots(hashes)
        found = np.where(self.hash_of[slots] == hashes, self.entry_of[slots], -1)
        open_ = np.flatnonzero((found < 0) & (self.entry_of[slots] >= 0))  # another piece sits there: look further
        for step in range(1, PROBES):
            if not len(open_):
                break
            slots = (self._slots(hashes[open_]) + step) & self.mask
            hit = self.hash_of[slots] == hashes[open_]
            taken = self.entry_of[slots]
            found[open_[hit]] = taken[hit]
            open_ = open_[~hit & (taken >= 0)]
        return found

    def add(self, key: int, piece: bytes, ids: Sequence[int]) -> bool:
        """Remember a piece under its hash; False where its place in the table is crowded, or taken by its equal."""
        slot = int(self._slots(np.array([key], np.uint64))[0])
        for _ in range(PROBES):
            if self.entry_of[slot] < 0:
                break
            if self.hash_of[slot] == key:
                return False
            slot = (slot + 1) & self.mask
        else:
            return False
        self._room(len(piece), len(ids))
        entry = self.entries
        self.start[entry], self.size[entry], self.first[entry], self.count[entry] = (
            self.bytes, len(piece), self.tokens, len(ids))
        self.content[self.bytes:self.bytes + len(piece)] = np.frombuffer(piece, np.uint8)
        self.ids[self.tokens:self.tokens + len(ids)] = ids
        self.bytes, self.tokens, self.entries = self.bytes + len(piece), self.tokens + len(ids), entry + 1
        self.hash_of[slot], self.entry_of[slot] = key, entry
        return True

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes * np.uint64(BASE) >> np.uint64(self.shift)).astype(np.int64)

    def _room(self, more_bytes: int, more_ids: int) -> None:
        if self.entries == len(self.start):
            self.start, self.size, self.first, self.count = (
                np.concatenate([part, np.zeros_like(part)]) for part in (self.start, self.size, self.first, self.count))
        if self.bytes + more_bytes > len(self.content):
            self.content = np.concatenate([self.content, np.zeros(max(len(self.content), more_bytes), np.uint8)])
        if self.tokens + more_ids > len(self.ids):
            self.ids = np.concatenate([self.ids, np.zeros(max(len(self.ids), more_ids), np.uint32)])


class Encoder:
    """Encodes texts with the merges of a byte-level `tokenizers` model whose split is `tokenizer.SPLIT`.

    model: its BPE; alphabet: the character that stands for each byte in its vocabulary.
    """

    def __init__(self, model: tokenizers.models.BPE, alphabet: Sequence[str], slots: int = SLOTS):
        self.model, self.alphabet, self.slots = model, alphabet, slots
        self.memory = Memory(slots)
        self.powers, self.inverse = _powers(BASE, 1), _powers(pow(BASE, -1, 1 << 64), 1)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint32 (tokens,). ValueError for lone surrogates."""
        encoded: list[np.ndarray] = []
        part: list[str] = []
        size = 0
        for text in texts:
            part.append(text)
            size += len(text)
            if size >= BATCH:
                encoded += self._batch(part)
                part, size = [], 0
        return encoded + (self._batch(part) if part else [])

    def _batch(self, texts: list[str]) -> list[np.ndarray]:
        points, ends = _joined(texts)
        starts = piece_starts(points)
        content = np.frombuffer("".join(texts).encode(), np.uint8)
        width = np.ones(len(points), np.uint8)
        if len(content) != len(points) - len(texts):
            width += (points > 0x7F).view(np.uint8) + (points > 0x7FF).view(np.uint8) + (points > 0xFFFF).view(np.uint8)
        width[ends] = 0
        place = np.concatenate([np.zeros(1, np.int64), np.cumsum(width, dtype=np.int64)])  # bytes before each character
        begin = place[starts]
        end = np.append(begin[1:], len(content))
        entries = self._entries(content, begin, end)
        count = self.memory.count[entries]
        ids = _take(self.memory.ids, self.memory.first[entries], count)
        # A text ends before the piece that is its sentinel, which has no bytes and no ids.
        last = np.searchsorted(starts, ends)
        return np.split(ids, np.cumsum(count)[last])[:-1] if len(texts) else []

    def _entries(self, content: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The entry of each piece; those that are not remembered are encoded and remembered first."""
        if self.memory.full:
            self.memory = Memory(self.slots)
        hashes = self._hashes(content, begin, end)
        found = self.memory.find(hashes)
        missing = np.flatnonzero(found < 0)
        self._learn(content, begin, end, hashes, missing)
        found[missing] = self.memory.find(hashes[missing])
        wrong = (found < 0) | ~self._equal(content, begin, end, np.maximum(found, 0))
        for at in np.flatnonzero(wrong).tolist():  # too long or crowded out; or two pieces of one hash
            found[at] = self._once(content[begin[at]:end[at]].tobytes())
        return found

    def _learn(self, content: np.ndarray, begin: np.ndarray, end: np.ndarray, hashes: np.ndarray,
               missing: np.ndarray) -> None:
        short = missing[(end - begin)[missing] <= LONGEST]
        keys, first = np.unique(hashes[short], return_index=True)
        for key, at in zip(keys.tolist(), short[first].tolist(), strict=True):
            piece = content[begin[at]:end[at]].tobytes()
            self.memory.add(key, piece, self._ids(piece))

    def _once(self, piece: bytes) -> int:
        """An entry that the table does not lead to."""
        memory, ids = self.memory, self._ids(piece)
        memory._room(0, len(ids))
        entry = memory.entries
        memory.start[entry], memory.size[entry], memory.first[entry], memory.count[entry] = (
            0, 0, memory.tokens, len(ids))
        memory.ids[memory.tokens:memory.tokens + len(ids)] = ids
        memory.tokens, memory.entries = memory.tokens + len(ids), entry + 1
        return entry

    def _ids(self, piece: bytes) -> list[int]:
        return [token.id for token in self.model.tokenize("".join([self.alphabet[byte] for byte in piece]))]

    def _hashes(self, content: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """A polynomial in the bytes of each piece and its length, modulo 2^64, by differences of one running sum."""
        if len(content) + 1 > len(self.powers):
            self.powers, self.inverse = (_powers(base, len(content) + 1) for base in (BASE, pow(BASE, -1, 1 << 64)))
        terms = (content.astype(np.uint64) + np.uint64(1)) * self.powers[:len(content)]
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        hashes = (running[end] - running[begin]) * self.inverse[begin]
        return (hashes ^ (hashes >> np.uint64(29))) * np.uint64(BASE) + (end - begin).astype(np.uint64)

    def _equal(self, content: np.ndarray, begin: np.ndarray, end: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """Whether each piece has the bytes that its entry remembers."""
        size, memory = end - begin, self.memory
        same = memory.size[entries] == size
        # Pieces stand side by side, so `content` is what is to be compared, piece after piece.
        remembered = _take(memory.content, memory.start[entries], np.where(same, size, 0))
        ours = content if same.all() else _take(content, begin, np.where(same, size, 0))
        differs = np.flatnonzero(remembered != ours)
        if len(differs):
            bounds = np.cumsum(np.where(same, size, 0))
            same[np.searchsorted(bounds, differs, "right")] = False
        return same


def _joined(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, uint32, SENTINEL behind each; the places of the sentinels."""
    sizes = np.array([len(text) for text in texts], np.int64)
    ends = np.cumsum(sizes + 1) - 1
    points = np.full(int(sizes.sum()) + len(texts), SENTINEL, np.uint32)
    inside = np.ones(len(points), bool)
    inside[ends] = False
    points[inside] = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    return points, ends


def _take(values: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The runs values[first[i]:first[i] + count[i]], one after the other."""
    ends = np.cumsum(count)
    return values[np.repeat(first - (ends - count), count) + np.arange(int(ends[-1]) if len(ends) else 0)]


def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, ... modulo 2^64, uint64 (count,)."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
