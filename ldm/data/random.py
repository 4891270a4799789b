"""Random numbers as a function of their place, never of what was drawn before.

SplitMix64's finaliser (Steele, Lea & Flood 2014) over counters, on whole arrays: the same numbers
with any number of ranks and workers, and from one release of NumPy to the next.
"""

import numpy as np
from numpy.typing import NDArray

FLIP, TOP, LEFT, CAPTION, REPLACE = range(5)  # streams: what is drawn for a sample
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def scattered(*keys: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 well-mixed bits for each counter; every tuple of keys is a stream of its own."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = _finalise(state + np.array([key % 2**64], np.uint64) + _GOLDEN)
    return _finalise(_finalise(state + counters.astype(np.uint64) * _GOLDEN) + _GOLDEN)


def uniforms(*keys: int, counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each counter."""
    return (scattered(*keys, counters=counters) >> np.uint64(11)) / float(2**53)


def permutation(*keys: int, length: int) -> NDArray[np.int64]:
    """0..length-1 in an order that is a function of the keys."""
    bits = scattered(*keys, counters=np.arange(length))
    return np.argsort(bits, kind="stable")
