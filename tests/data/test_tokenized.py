"""Token ids that somebody else made: read exactly, and refused when damaged."""

import struct
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.data.tokenized import read_megatron, read_npy
from tilth.recipe import BadInput

CODES = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def write_megatron(base, sequences, boundaries, dtype="<u2", **changes):
    sizes = np.array([len(item) for item in sequences], "<i4")
    pointers = ((np.cumsum(sizes, dtype="<i8") - sizes) * np.dtype(dtype).itemsize).astype("<i8")
    parts = {"magic": b"MMIDIDX\x00\x00", "version": struct.pack("<Q", 1), "code": struct.pack("<B", CODES[dtype]),
             "counts": struct.pack("<QQ", len(sequences), len(boundaries)), "sizes": sizes.tobytes(),
             "pointers": pointers.tobytes(), "documents": np.array(boundaries, "<i8").tobytes(), **changes}
    base.with_suffix(".idx").write_bytes(b"".join(parts.values()))
    base.with_suffix(".bin").write_bytes(b"".join(np.array(item, dtype).tobytes() for item in sequences))
    return base


def test_npy_documents(tmp_path):
    np.save(tmp_path / "a.npy", np.array([5, 0, 6, 7, 0, 8], np.uint16))
    assert [part.tolist() for part in read_npy(tmp_path / "a.npy", 0)] == [[5, 0], [6, 7, 0], [8]]
    assert [part.tolist() for part in read_npy(tmp_path / "a.npy")] == [[5, 0, 6, 7, 0, 8]]
    with pytest.raises(BadInput, match="document end 9 does not occur"):
        list(read_npy(tmp_path / "a.npy", 9))


@pytest.mark.parametrize("array, says", [
    (np.zeros(3), "float64 of shape"), (np.zeros((2, 2), int), "of shape"), (np.zeros(0, int), "no token ids"),
    (np.array([1, -1]), "negative"), (np.array([{}], object), "no NumPy array of numbers")])
def test_npy_of_something_else(tmp_path, array, says):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=says):
        list(read_npy(tmp_path / "a.npy"))


def test_npy_damaged_or_missing(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(100))
    content = (tmp_path / "a.npy").read_bytes()
    for cut in (0, 5, 40, 300):
        (tmp_path / "b.npy").write_bytes(content[:cut])
        with pytest.raises(BadInput, match=r"b\.npy"):
            list(read_npy(tmp_path / "b.npy"))
    with pytest.raises(BadInput, match="No file at"):
        list(read_npy(tmp_path / "c.npy"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 127), max_size=5), min_size=1, max_size=6), st.sampled_from(sorted(CODES)),
       st.data())
def test_megatron_is_read_exactly(tmp_path_factory, sequences, dtype, data):
    sequences = [*sequences, [1]]
    inner = data.draw(st.lists(st.integers(0, len(sequences)), max_size=4).map(sorted))
    boundaries = [0, *inner, len(sequences)]
    base = write_megatron(tmp_path_factory.mktemp("m") / "corpus", sequences, boundaries, dtype)
    joined = [list(chain(*sequences[a:b])) for a, b in pairwise(boundaries)]
    assert [part.tolist() for part in read_megatron(base)] == [part for part in joined if part]


@pytest.mark.parametrize("changes, says", [
    ({"magic": b"MMIDIDX\x00\x01"}, "does not begin"), ({"version": struct.pack("<Q", 2)}, "version 2"),
    ({"code": b"\x06"}, "dtype code 6"), ({"counts": struct.pack("<QQ", 3, 2)}, "asks for"),
    ({"counts": b""}, "damaged|ends within|asks"), ({"sizes": np.array([2, -1], "<i4").tobytes()}, "negative"),
    ({"sizes": np.array([2, 2], "<i4").tobytes()}, "its index describes"),
    ({"pointers": np.array([0, 2], "<i8").tobytes()}, "pointers do not follow"),
    ({"documents": np.array([0, 1], "<i8").tobytes()}, "boundaries do not run"), ({"documents": b""}, "asks for"),
    ({"documents": np.array([0, 2**40], "<i8").tobytes()}, "boundaries do not run")])
def test_megatron_damage(tmp_path, changes, says):
    base = write_megatron(tmp_path / "c", [[1, 2], [3]], [0, 2], **changes)
    with pytest.raises(BadInput, match=says):
        list(read_megatron(base))


def test_megatron_pair_must_be_whole(tmp_path):
    base = write_megatron(tmp_path / "c", [[1, 2], [3]], [0, 2])
    assert len(list(read_megatron(f"{base}.bin"))) == 1
    base.with_suffix(".bin").write_bytes(b"12")
    with pytest.raises(BadInput, match="has 2 bytes; its index describes 6"):
        list(read_megatron(base))
    base.with_suffix(".bin").unlink()
    with pytest.raises(BadInput, match="Copy both"):
        list(read_megatron(base))
    base.with_suffix(".idx").unlink()
    with pytest.raises(BadInput, match="No file at"):
        list(read_megatron(base))
