"""A state as bytes: cut into shards and put together again, exactly; each member takes its share."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from survive_toys import equal, is_shared, raw, state_at

from tilth.train.survive.flat import flatten, share, unflatten, write_head


def copied(flat) -> np.ndarray:
    """The shard as the copier writes it."""
    shard = np.full(flat.size, 255, np.uint8)
    write_head(flat, shard)
    for piece in flat.pieces:
        shard[piece.at:piece.at + len(piece.source)] = piece.source.numpy()
    return shard


@pytest.mark.parametrize("members", [1, 2, 3, 4, 8])
def test_every_member_gets_its_own_state_back(members):
    shards = [copied(flatten(state_at(5, member), member, members, shared=is_shared)) for member in range(members)]
    for member in range(members):
        assert equal(unflatten(shards, member), state_at(5, member))


@pytest.mark.parametrize("members", [2, 4, 8])
def test_each_member_copies_one_nth(members):
    flats = [flatten(state_at(5, member, size=100_000), member, members) for member in range(members)]
    tensors = sum(len(piece.source) for flat in flats for piece in flat.pieces)
    for flat in flats:
        assert sum(len(piece.source) for piece in flat.pieces) == pytest.approx(tensors / members, abs=64 * members)
        assert len(flat.head) < 3000


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_shares_cover_everything_once(total, members):
    ends = [share(total, member, members) for member in range(members)]
    assert ends[0][0] == 0 and ends[-1][1] == total
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ends))


KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int16, torch.int32,
         torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_types_sizes_and_bytes(data):
    sizes = data.draw(st.lists(st.integers(0, 33), min_size=1, max_size=6))
    state = {}
    for number, size in enumerate(sizes):
        kind = data.draw(st.sampled_from(KINDS))
        width = torch.empty(0, dtype=kind).element_size()
        content = data.draw(st.binary(min_size=size * width, max_size=size * width))
        content = bytes(byte & 1 for byte in content) if kind == torch.bool else content
        raw_bytes = torch.frombuffer(bytearray(content) or bytearray(1), dtype=torch.uint8)
        state[f"t{number}"] = raw_bytes[:size * width].view(kind)
    members = data.draw(st.integers(1, 5))
    shards = [copied(flatten(state, member, members)) for member in range(members)]
    back = unflatten(shards, 0)
    assert all(raw(back[name]) == raw(tensor) and back[name].dtype == tensor.dtype for name, tensor in state.items())


def test_tied_and_transposed_tensors():
    matrix = torch.arange(12.0).reshape(3, 4)
    back = unflatten([copied(flatten({"a": matrix, "b": matrix, "t": matrix.t()}, 0, 1))], 0)
    assert back["a"] is back["b"] and torch.equal(back["t"], matrix.t())


def test_what_does_not_stay_is_copied_at_once_and_what_stays_is_not():
    stays, moves = torch.zeros(64), torch.zeros(64)
    flat = flatten({"stays": stays, "moves": moves}, 0, 1, stays=lambda tensor: tensor.data_ptr() == stays.data_ptr())
    stays += 1
    moves += 1
    back = unflatten([copied(flat)], 0)
    assert back["stays"].eq(1).all() and back["moves"].eq(0).all()


def test_shards_of_different_states_do_not_fit():
    one = copied(flatten(state_at(1), 0, 2))
    other = copied(flatten({**state_at(1), "more": torch.zeros(9)}, 1, 2))
    with pytest.raises(ValueError, match="one state"):
        unflatten([one, other], 0)
    with pytest.raises(ValueError, match="all of a state"):
        unflatten([one], 0)
