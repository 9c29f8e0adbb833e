"""Where the pieces of a text begin that byte-pair encoding takes one by one: the split of `tokenizer.SPLIT`, computed
for a whole batch at once from the classes of its characters.

The regular expression takes, from left to right, the first of: an English contraction; letters with at most one mark or
space before them; up to three digits; marks, with at most one space before and line ends behind; white space up to a
line end; white space but for one before a word; white space. What it does at a place depends on the runs of letters
(L), digits (N), white space (W) and other characters (O) around it only, so all places are decided together.
"""

import numpy as np
from tokenizers import Regex, pre_tokenizers

OTHER, LETTER, DIGIT, SPACE, LINE_END, TEXT_END = range(6)
PAGE_BITS = 12
PAGE = 1 << PAGE_BITS  # code points that are classified at once, when the first of them is met
SENTINEL = 0x110000  # stands behind each text of a batch
CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")
APOSTROPHE, BLANK = ord("'"), ord(" ")


_table = np.full(SENTINEL + 1, TEXT_END, np.uint8)
_filled = np.zeros((SENTINEL >> PAGE_BITS) + 1, bool)
_filled[-1] = True


def _page(number: int) -> np.ndarray:
    """Classes (PAGE,) uint8 of the code points from number * PAGE on, as the library's own engine sees them."""
    first = number * PAGE
    points = [point for point in range(first, first + PAGE) if not 0xD800 <= point < 0xE000 and point < 0x110000]
    classes = np.full(PAGE, OTHER, np.uint8)
    for pattern, kind in ((r"\p{L}", LETTER), (r"\p{N}", DIGIT), (r"\s", SPACE)):
        split = pre_tokenizers.Split(Regex(pattern), "removed")
        # What is not removed is not of the class; a mark that is of none keeps neighbours apart.
        text = "".join(f"{chr(point)}!" for point in points)
        left = {start for piece, (begin, end) in split.pre_tokenize_str(text) for start in range(begin, end)}
        of_kind = [point - first for at, point in enumerate(points) if 2 * at not in left]
        classes[of_kind] = kind
    for line_end in (0x0A, 0x0D):
        if first <= line_end < first + PAGE:
            classes[line_end - first] = LINE_END
    return classes


def classes_of(points: np.ndarray) -> np.ndarray:
    """Classes (n,) uint8 of code points (n,) uint32; SENTINEL is TEXT_END."""
    needed = np.bincount(points >> PAGE_BITS, minlength=len(_filled)) > 0
    for number in np.flatnonzero(needed & ~_filled).tolist():
        _table[number * PAGE:(number + 1) * PAGE] = _page(number)
        _filled[number] = True
    return _table[points]


def piece_starts(points: np.ndarray) -> np.ndarray:
    """Where pieces begin, int64 (pieces,) rising, in code points (n,) uint32 that end with SENTINEL; every SENTINEL is
    a piece of its own."""
    classes = classes_of(points)
    wide = np.where(classes == LINE_END, SPACE, classes)
    begin = np.flatnonzero(np.concatenate([[True], wide[1:] != wide[:-1]]))  # of each run
    end = np.append(begin[1:], len(points))
    kind = wide[begin]
    before, after = np.append(TEXT_END, kind[:-1]), np.append(kind[1:], TEXT_END)
    starts = [np.flatnonzero(classes == TEXT_END), _of_digits(begin[kind == DIGIT], end[kind == DIGIT])]
    joined = np.zeros(len(begin), bool)  # whether a run goes on with the piece before it

    space = np.flatnonzero(kind == SPACE)
    at, following = _of_space(points, classes, begin[space], end[space], before[space] == OTHER,
                              after[space] == TEXT_END)
    starts.append(at)
    last = points[end[space] - 1]
    joins = following & ((after[space] == LETTER) | ((after[space] == OTHER) & (last == BLANK)))
    joined[np.minimum(space + 1, len(begin) - 1)[joins]] = True

    mark = np.flatnonzero((kind == OTHER) & (end - begin == 1) & (after == LETTER) & ~joined)
    length = np.zeros(len(mark), np.int64)
    apostrophe = np.flatnonzero(points[begin[mark]] == APOSTROPHE)
    length[apostrophe] = _contractions(points, begin[mark[apostrophe]] + 1, end[mark[apostrophe] + 1])
    joined[mark + 1] = True
    rest = begin[mark] + 1 + length
    starts.append(rest[(length > 0) & (rest < end[mark + 1])])
    starts.append(begin[((kind == LETTER) | (kind == OTHER)) & ~joined])
    return np.sort(np.concatenate(starts))


def _of_digits(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Pieces of three digits."""
    count = -(-(end - begin) // 3)
    run = np.repeat(np.arange(len(begin)), count)
    within = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    return begin[run] + 3 * within


def _of_space(points: np.ndarray, classes: np.ndarray, begin: np.ndarray, end: np.ndarray, after_marks: np.ndarray,
              at_end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts of pieces within runs of white space, and for each run whether its last character may join what
    follows (it is no line end, and a piece begins there)."""
    places = np.arange(len(points), dtype=np.int32)
    ends_line = classes == LINE_END
    last_line_end = np.maximum.accumulate(np.where(ends_line, places, np.int32(-1)))[end - 1]
    # Marks take the line ends that stand directly behind them.
    next_other = np.minimum.accumulate(np.where(ends_line, np.int32(len(points)), places)[::-1])[::-1]
    begin = np.where(after_marks, np.minimum(next_other[begin], end), begin)
    lines = last_line_end >= begin
    rest = np.where(lines, last_line_end + 1, begin)  # white space without a line end
    size = end - rest
    whole = at_end | (size == 1)
    starts = [begin[lines], rest[size > 0], (end - 1)[(size > 1) & ~whole]]
    return np.concatenate(starts), (size > 0) & ~at_end


def _contractions(points: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Letters that belong to a contraction, for letters from `begin` to `end` behind an apostrophe; 0 for none."""
    length = np.zeros(len(begin), np.int64)
    for ending in CONTRACTIONS:
        fits = (length == 0) & (end - begin >= len(ending))
        for at, letter in enumerate(ending):
            here = points[np.minimum(begin + at, len(points) - 1)]
            forms = [ord(letter), ord(letter.upper()), *([0x17F] if letter == "s" else [])]  # the long s is one, too
            fits &= np.isin(here, forms)
        length[fits] = len(ending)
    return length
