"""Packing: no token lost, none twice, no row too long, and rows well filled."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data.packing import pack

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


def first_fit_rows(lengths: np.ndarray, row_length: int) -> int:
    """Rows that plain first fit needs, units in the order given."""
    rows: list[int] = []
    for length in lengths:
        for index, used in enumerate(rows):
            if used + length <= row_length:
                rows[index] += length
                break
        else:
            rows.append(length)
    return len(rows)


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 20))
def test_every_token_has_one_place(lengths, row_length):
    packed = pack(np.array(lengths, np.int64), row_length)
    tokens = [(item, start + i) for item, start, length in zip(packed.item, packed.start, packed.length, strict=True)
              for i in range(length)]
    places = [(row, offset + i) for row, offset, length in zip(packed.row, packed.offset, packed.length, strict=True)
              for i in range(length)]
    assert sorted(tokens) == [(item, i) for item, length in enumerate(lengths) for i in range(length)]
    assert len(set(places)) == len(places)
    assert all(0 <= offset < row_length for _, offset in places)
    assert {row for row, _ in places} == set(range(packed.rows))
    assert packed.tokens == sum(lengths)
    assert packed.split == sum(length > row_length for length in lengths)
    assert packed.padded == pytest.approx(1 - sum(lengths) / (packed.rows * row_length) if packed.rows else 0)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 20))
def test_pieces_are_whole_where_they_fit_and_rows_could_not_be_merged(lengths, row_length):
    packed = pack(np.array(lengths, np.int64), row_length)
    short = np.array(lengths, np.int64)[packed.item] <= row_length
    assert (packed.length[short] == np.array(lengths, np.int64)[packed.item[short]]).all()
    filled = np.sort(np.bincount(packed.row, packed.length, packed.rows))
    assert len(filled) < 2 or filled[0] + filled[1] > row_length


@pytest.mark.parametrize("seed", range(5))
def test_no_more_rows_than_first_fit(seed):
    lengths = np.minimum(np.random.default_rng(seed).lognormal(4, 1, 2000).astype(np.int64) + 1, 512)
    assert pack(lengths, 512).rows <= first_fit_rows(lengths, 512)


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 20), seed=st.integers(0, 99))
def test_rows_in_another_order(lengths, row_length, seed):
    packed = pack(np.array(lengths, np.int64), row_length)
    order = np.random.default_rng(seed).permutation(packed.rows)
    moved = packed.take(order)
    for new, old in enumerate(order):
        for name in ("item", "start", "length", "offset"):
            assert (getattr(moved, name)[moved.row == new] == getattr(packed, name)[packed.row == old]).all()
    assert (np.diff(moved.row * row_length + moved.offset) > 0).all()


def test_hundred_thousand_units_take_under_a_second():
    lengths = np.random.default_rng(0).lognormal(5, 1.2, 100_000).astype(np.int64) + 1
    start = time.process_time()
    packed = pack(lengths, 2048)
    assert time.process_time() - start < 1
    assert packed.padded < 0.01


def test_a_row_needs_a_position():
    with pytest.raises(ValueError, match="at least one position"):
        pack(np.array([1]), 0)
