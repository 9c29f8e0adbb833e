"""A pool of three sources of unequal size: big (60 units), small (20), tiny (5); units of 1 to 20 tokens."""

from pathlib import Path

import numpy as np
import pytest

from tilth.data.pool import Pool, PoolWriter, token_field

SOURCES = {"big": 60, "small": 20, "tiny": 5}


def make_pool(folder: Path) -> Pool:
    rng = np.random.default_rng(1)
    with PoolWriter(folder, {"tokens": token_field(50)}, vocab_size=50, end_of_text=0) as writer:
        for source, count in SOURCES.items():
            names = [f"{source}{number}" for number in range(count)]
            writer.append({"tokens": [rng.integers(1, 50, rng.integers(1, 21)) for _ in names]},
                          {"unit_id": [f"{name}#0" for name in names], "record_id": names, "source": [source] * count})
    return Pool.open(folder)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"))
