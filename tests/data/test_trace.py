"""The log of what was drawn names the documents of any step, also after a stop."""

import numpy as np
import pytest

from tilth.data.batch import IGNORED
from tilth.data.stream import PackedStream
from tilth.data.trace import compress_rows, decompress_rows, trace_steps
from tilth.recipe import BadInput


@pytest.fixture(scope="session")
def stream_with_log(in_order):
    return lambda pool, folder, **more: PackedStream(pool, in_order(len(pool)), 16, seed=3,
                                                     log_folder=folder / "drawn", **more)


def test_trace_names_what_the_batches_held(pool, stream_with_log, tmp_path):
    stream = stream_with_log(pool, tmp_path)
    unit_ids = pool.column("unit_id")
    for step in range(12):
        batch = stream.next(5)
        table = trace_steps(tmp_path, pool, step * 5, step * 5 + 5)
        assert table.columns == ["unit_id", "record_id", "source", "license", "start", "end", "tokens", "row"]
        assert table["unit_id"].to_list() == unit_ids[batch["unit_id"].numpy()].tolist()
        assert table["tokens"].sum() == int((batch["targets"] != IGNORED).sum())
        assert set(table["row"].to_list()) == set(range(step * 5, step * 5 + 5))
        assert set(table["license"].to_list()) == {"CC0"}
        assert (table["end"] - table["start"] >= table["tokens"]).all()


def test_a_resumed_run_cuts_the_log_and_writes_it_again(pool, stream_with_log, tmp_path):
    stream = stream_with_log(pool, tmp_path)
    stream.next(10)
    state, before = stream.state_dict(), stream.stretch
    stream.next(30)
    whole = trace_steps(tmp_path, pool, 0, 40)
    resumed = stream_with_log(pool, tmp_path)
    resumed.load_state_dict(state)
    assert len(list((tmp_path / "drawn").iterdir())) == before + 1
    resumed.next(30)
    assert trace_steps(tmp_path, pool, 0, 40).equals(whole)


def test_a_new_run_forgets_the_log_of_an_abandoned_one(pool, stream_with_log, tmp_path):
    stream_with_log(pool, tmp_path).next(60)
    fresh = stream_with_log(pool, tmp_path)
    fresh.next(1)
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["drawn-00000.npy"]
    with pytest.raises(BadInput, match=f"ends at row {fresh.stretch_rows}"):
        trace_steps(tmp_path, pool, 59, 60)


def test_only_the_first_process_writes(pool, stream_with_log, tmp_path):
    stream_with_log(pool, tmp_path, rank=1, world=2).next(3)
    assert not (tmp_path / "drawn").exists()


def test_rows_that_were_not_drawn(pool, stream_with_log, tmp_path):
    with pytest.raises(BadInput, match="no log"):
        trace_steps(tmp_path, pool, 0, 5)
    stream_with_log(pool, tmp_path).next(3)
    with pytest.raises(BadInput, match="not drawn yet"):
        trace_steps(tmp_path, pool, 10_000, 10_001)
    (tmp_path / "drawn" / "drawn-00000.npy").write_bytes(b"")
    with pytest.raises(BadInput, match="damaged"):
        trace_steps(tmp_path, pool, 0, 1)


def test_rows_as_text():
    rows = np.array([5, 0, 2**40], np.int64)
    assert decompress_rows(compress_rows(rows)).tolist() == rows.tolist()
    assert decompress_rows(compress_rows(rows[:0])).tolist() == []
