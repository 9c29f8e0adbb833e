"""The pool on disk: what was written comes back; what does not fit or is damaged is an error."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tilth.data.pool import Field, Pool, PoolWriter, token_field
from tilth.recipe import BadInput, RunFailed


def columns(names, source="web"):
    return {"unit_id": [f"{name}#0" for name in names], "record_id": list(names), "source": [source] * len(names),
            "license": [None] * len(names)}


def write(folder, tokens, vocab_size=300, **more):
    with PoolWriter(folder, {"tokens": token_field(vocab_size)}, vocab_size=vocab_size, end_of_text=0) as writer:
        writer.append({"tokens": tokens}, columns([f"r{i}" for i in range(len(tokens))]))
    return Pool.open(folder)


def test_what_was_written_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    ragged = [rng.integers(0, 70_000, n) for n in (3, 0, 5, 1)]
    fixed = rng.random((4, 20)).astype(np.float32)
    frames = [rng.random((n, 2, 3)).astype(np.float32) for n in (1, 2, 0, 4)]
    fields = {"tokens": token_field(70_000), "curve": Field("float32", (20,)), "frames": Field("float32", (2, 3), True)}
    with PoolWriter(tmp_path, fields, vocab_size=70_000) as writer:
        for part in (slice(0, 3), slice(3, 4)):
            flat = (np.concatenate(frames[part]), np.array([len(one) for one in frames[part]]))
            writer.append({"tokens": ragged[part], "curve": fixed[part], "frames": flat},
                          columns(["a", "b", "c", "d"][part], "web" if part.start == 0 else "books"))
    pool = Pool.open(tmp_path)
    assert len(pool) == 4
    assert pool.sources == ["web", "books"]
    assert pool.source.tolist() == [0, 0, 0, 1]
    assert pool.column("record").tolist() == [0, 1, 2, 3]
    assert pool.column("unit_id").tolist() == ["a#0", "b#0", "c#0", "d#0"]
    assert pool.lengths().tolist() == [3, 0, 5, 1]
    assert pool.values("tokens").dtype == np.uint32
    for row in range(4):
        assert pool.get("tokens", row).tolist() == ragged[row].tolist()
        assert (pool.get("curve", row) == fixed[row]).all()
        assert (pool.get("frames", row) == frames[row]).all()
    described = json.loads((tmp_path / "fields" / "fields.json").read_text())
    assert described["fields"]["tokens"] == {"dtype": "uint32", "shape": [], "ragged": True}
    assert (tmp_path / "fields" / "tokens.bin").stat().st_size == 9 * 4


def test_units_of_one_record_share_its_number(tmp_path):
    with PoolWriter(tmp_path, {"tokens": token_field(9)}) as writer:
        for ids, record in ((["a#0", "a#1"], ["a", "a"]), (["a#2", "b#0"], ["a", "b"])):
            writer.append({"tokens": [[1], [2]]}, {"unit_id": ids, "record_id": record, "source": ["s", "s"]})
    assert Pool.open(tmp_path).column("record").tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_width_of_ids(tmp_path, vocab_size, dtype):
    pool = write(tmp_path, [np.array([vocab_size - 1])], vocab_size)
    assert pool.values("tokens").dtype == dtype
    assert pool.get("tokens", 0).tolist() == [vocab_size - 1]


@pytest.mark.parametrize("bad", [300, -1, 65_536, 2**40])
def test_ids_out_of_range_never_overflow(tmp_path, bad):
    with pytest.raises(BadInput, match=f"from 0 to 299; got {bad}"):
        write(tmp_path, [np.array([1, bad])])
    assert not list(tmp_path.iterdir())


def test_wrong_shapes_lengths_and_fields(tmp_path):
    fields = {"tokens": token_field(9), "curve": Field("float32", (2,))}
    good = {"tokens": [np.array([1])], "curve": np.zeros((1, 2), np.float32)}
    for change, message in (({"curve": np.zeros((1, 3))}, "shape"), ({"curve": np.zeros((2, 2))}, "2 units, not for 1"),
                            ({"tokens": (np.array([1, 2]), [1])}, "lengths for 1"), ({"other": []}, "declares"),
                            ({"tokens": [np.array([1.5])]}, "integers")):
        with pytest.raises(BadInput, match=message), PoolWriter(tmp_path, fields) as writer:
            writer.append({**good, **change}, columns(["a"]))
    with pytest.raises(BadInput, match="cannot be called"):
        PoolWriter(tmp_path, {"../x": token_field(9)})
    with pytest.raises(BadInput, match="cannot be stored"):
        Field("object")


def test_a_failed_write_leaves_the_old_pool(tmp_path):
    write(tmp_path, [np.array([1, 2])])
    with pytest.raises(BadInput):
        write(tmp_path, [np.array([1, 999])])
    assert Pool.open(tmp_path).get("tokens", 0).tolist() == [1, 2]
    assert write(tmp_path, [np.array([7])]).get("tokens", 0).tolist() == [7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields", "units.parquet"]


def test_a_full_disk_is_a_failed_run_and_leaves_nothing(tmp_path):
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    write(tmp_path, [np.array([1, 2])])
    with pytest.raises(RunFailed, match="No space left"), PoolWriter(tmp_path, {"tokens": token_field(9)}) as writer:
        writer._files["tokens"] = Full()
        writer.append({"tokens": [[1]]}, columns(["a"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields", "units.parquet"]
    assert Pool.open(tmp_path).get("tokens", 0).tolist() == [1, 2]


def test_two_units_of_one_name_and_no_unit(tmp_path):
    with pytest.raises(BadInput, match="'a#0'"), PoolWriter(tmp_path, {"tokens": token_field(9)}) as writer:
        writer.append({"tokens": [[1], [2]]}, columns(["a", "a"]))
    with pytest.raises(BadInput, match="nothing to write"), PoolWriter(tmp_path, {"tokens": token_field(9)}):
        pass


def test_same_units_same_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, [np.array([1, 2]), np.array([3])])
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def shorten(folder):
    path = folder / "fields" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-1])


def disorder(folder):
    np.save(folder / "fields" / "tokens.offsets.npy", np.array([0, 3, 2], np.int64))


def plant_pickle(folder):
    np.save(folder / "fields" / "tokens.offsets.npy", np.array([object()] * 3, object), allow_pickle=True)


def forget(folder):
    path = folder / "fields" / "fields.json"
    path.write_text(path.read_text().replace('"sources"', '"other"'))


@pytest.mark.parametrize("damage", [shorten, disorder, plant_pickle, forget,
                                    lambda folder: (folder / "fields" / "source.bin").unlink()])
def test_damage_is_bad_input(tmp_path, damage):
    write(tmp_path, [np.array([1, 2]), np.array([3])])
    damage(tmp_path)
    with pytest.raises(BadInput, match="damaged"):
        Pool.open(tmp_path)


def test_other_version_no_pool_and_other_units(tmp_path):
    with pytest.raises(BadInput, match="no pool"):
        Pool.open(tmp_path)
    write(tmp_path / "a", [np.array([1, 2])])
    write(tmp_path / "b", [np.array([1]), np.array([2])])
    (tmp_path / "a" / "units.parquet").write_bytes((tmp_path / "b" / "units.parquet").read_bytes())
    with pytest.raises(BadInput, match="2 rows, not 1"):
        Pool.open(tmp_path / "a").column("unit_id")
    described = tmp_path / "b" / "fields" / "fields.json"
    described.write_text(described.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(BadInput, match="version 99"):
        Pool.open(tmp_path / "b")


def test_reading_needs_numpy_only(tmp_path):
    write(tmp_path, [np.array([1, 2])])
    code = ("import sys; sys.modules.update(dict.fromkeys(['pyarrow', 'polars', 'tokenizers', 'torch']))\n"
            "from tilth.data.pool import Pool; pool = Pool.open(sys.argv[1])\n"
            "assert pool.get('tokens', 0).tolist() == [1, 2] and pool.source.tolist() == [0]")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
