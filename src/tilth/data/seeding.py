"""Randomness that depends on what it is for, never on which process asks or in what order."""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator that is a pure function of (run seed, purpose, numbers such as epoch, stretch or unit row)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])
