"""The stream: consistent batches, exact resume, any number of processes, held-out tokens exactly once."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data.batch import IGNORED, Batch
from tilth.data.held_out import EvalRows
from tilth.data.stream import PackedStream
from tilth.recipe import BadInput

L = 16


@pytest.fixture(scope="session")
def stream_of(in_order):
    return lambda pool, seed=5, **more: PackedStream(pool, in_order(len(pool)), L, seed=seed, **more)


def equal(one: Batch, two: Batch) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def segments(batch: Batch):
    """(unit index, inputs, targets, positions) of each segment."""
    index = batch["unit_index"].flatten()
    for unit in range(len(batch["unit_id"])):
        where = torch.nonzero(index == unit).flatten()
        assert (where.diff() == 1).all()
        assert len({int(at) // L for at in where}) == 1
        yield unit, *(batch[key].flatten()[where] for key in ("tokens", "targets", "positions"))


def one_epoch(stream, rows=4):
    batches = []
    while stream.epoch < 1:
        batches.append(stream.next(rows))
    return batches


def test_fields_of_a_batch(pool, stream_of):
    for batch in one_epoch(stream_of(pool)):
        assert batch["tokens"].shape == batch["targets"].shape == batch["unit_index"].shape == (4, L)
        for unit, inputs, targets, positions in segments(batch):
            assert positions.tolist() == list(range(len(positions)))
            assert inputs.tolist() == [pool.end_of_text, *targets[:-1].tolist()]
            row = int(batch["unit_id"][unit])
            tokens = pool.get("tokens", row).tolist()
            at = tokens.index(int(targets[0]))
            assert targets.tolist() == tokens[at:at + len(targets)]
            assert int(batch["source"][unit]) == pool.source[row]
        padding = batch["unit_index"] == -1
        assert (batch["targets"][padding] == IGNORED).all()
        assert (batch["tokens"][padding] == pool.end_of_text).all()
        assert (batch["positions"][padding] == 0).all()
        assert (batch["weight"] == 2).all()
        assert batch["weight"].dtype == torch.float32
        assert all(batch[key].dtype == torch.int64 for key in batch if key != "weight")


def test_every_token_is_predicted_once_an_epoch(pool, stream_of):
    stream, seen, rows = stream_of(pool), [], 0
    stretches = -(-len(pool) // 7)
    while stream.stretch < stretches - 1 or stream.row < stream.stretch_rows:
        batch = stream.next(1)
        seen += batch["targets"][batch["targets"] != IGNORED].tolist()
        rows += 1
    assert sorted(seen) == sorted(pool.values("tokens").tolist())
    assert stream.epoch == 1
    assert stream.rows == rows
    assert stream.padded == pytest.approx(1 - len(seen) / (rows * L))


def test_units_longer_than_a_row_are_split_and_counted(new_pool, stream_of):
    pool = new_pool([40, 5], unit_tokens=40)
    stream = stream_of(pool)
    batch = stream.next(3)
    assert sorted(batch["targets"][batch["targets"] != IGNORED].tolist()) == sorted(pool.values("tokens").tolist())
    assert stream.split == 1


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 30), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_resumed_anywhere_equals_uninterrupted(pool, stream_of, before, sizes):
    whole, rows = stream_of(pool), stream_of(pool)
    for _ in range(before):
        rows.next(1)
    if before:
        whole.next(before)
    resumed = stream_of(pool)
    resumed.load_state_dict(json.loads(json.dumps(rows.state_dict())))
    for size in sizes:
        assert equal(resumed.next(size), whole.next(size))
    assert (resumed.tokens, resumed.rows, resumed.padded) == (whole.tokens, whole.rows, whole.padded)
    assert resumed.state_dict()["drawn"] == whole.state_dict()["drawn"]


@settings(max_examples=15, deadline=None)
@given(world=st.integers(2, 4), size=st.integers(1, 5))
def test_several_processes_see_the_rows_of_one(pool, stream_of, world, size):
    alone = stream_of(pool)
    together = [stream_of(pool, rank=rank, world=world) for rank in range(world)]
    for _ in range(8):
        batch = alone.next(size * world)
        parts = [stream.next(size) for stream in together]
        for key in ("tokens", "targets", "positions"):
            assert torch.equal(torch.cat([part[key] for part in parts]), batch[key])
        assert torch.equal(torch.cat([part["unit_id"] for part in parts]), batch["unit_id"])
    assert len({(stream.tokens, stream.rows) for stream in [alone, *together]}) == 1


def test_another_seed_gives_another_order(pool, stream_of):
    assert not equal(stream_of(pool).next(20), stream_of(pool, seed=6).next(20))


def test_weights_wait_for_losses_where_the_policy_needs_them(pool, in_order):
    policy = in_order(len(pool), needs_losses=True)
    stream = PackedStream(pool, policy, L, seed=1)
    batch = stream.next(2)
    assert stream.needs_losses
    assert (batch["weight"] == 1).all()
    assert (stream.weights(batch, torch.ones(len(batch["unit_id"]))) == 2).all()
    stream.observe(batch["unit_id"], torch.ones(len(batch["unit_id"])))
    assert policy.told[0][0] == batch["unit_id"].tolist()


def test_state_of_another_pool_or_version(pool, stream_of, new_pool):
    stream = stream_of(pool)
    stream.next(20)
    state = stream.state_dict()
    with pytest.raises(BadInput, match="does not have"):
        stream_of(new_pool([5, 5])).load_state_dict(state)
    with pytest.raises(BadInput, match="version"):
        stream_of(pool).load_state_dict({**state, "version": 7})


@pytest.mark.parametrize("stride", [None, 1, 5, L])
def test_held_out_tokens_are_predicted_exactly_once_with_context(pool, stride):
    rows, seen = EvalRows(pool, L, stride), []
    record = np.repeat(pool.column("record"), pool.lengths())
    first = {int(number): int(np.flatnonzero(record == number)[0]) for number in np.unique(record)}
    for batch in rows.batches(3):
        for unit, inputs, targets, _positions in segments(batch):
            scored = torch.nonzero(targets != IGNORED).flatten()
            assert len(scored)
            seen += targets[scored].tolist()
            begin = first[int(pool.column("record")[int(batch["unit_id"][unit])])]
            where = int(np.flatnonzero(pool.values("tokens") == int(targets[-1]))[0]) + 1
            text = pool.values("tokens")[where - len(targets):where].tolist()
            assert inputs.tolist() == [pool.end_of_text, *text[:-1]]
            assert len(set(record[where - len(targets):where].tolist())) == 1
            context = where - len(targets) - begin
            assert context == 0 or int(scored[0]) >= L - (stride or L)
    assert sorted(seen) == sorted(pool.values("tokens").tolist())
    assert rows.tokens == len(seen)
    assert rows.bytes_by_source.tolist() == [int(pool.column("bytes")[pool.source == s].sum()) for s in (0, 1)]


def test_held_out_rows_of_several_processes_and_a_limit(pool):
    whole = EvalRows(pool, L, 4)
    parts = [EvalRows(pool, L, 4, rank=rank, world=3) for rank in range(3)]
    seen = [int(token) for part in parts for batch in part.batches(5) for token in batch["targets"].flatten()
            if token != IGNORED]
    assert sorted(seen) == sorted(pool.values("tokens").tolist())
    limited = EvalRows(pool, L, 4, limit_tokens=300)
    assert 100 < limited.tokens < 600 < whole.tokens
    assert 0 < limited.bytes_by_source.sum() == limited.tokens
    assert EvalRows(pool, L, 4, limit_tokens=1).records == 1
    with pytest.raises(ValueError, match="stride"):
        EvalRows(pool, L, L + 1)
