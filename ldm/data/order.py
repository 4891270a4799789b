"""The order of samples in training: a pure function of (seed, epoch, position).

An epoch permutes the pieces (shards, the large ones cut), puts neighbours together into windows of
about `window` samples, and permutes the samples in each window. So reading stays within a window's
few shards, and any position is found without walking to it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ldm.data.random import permutation

Indices = NDArray[np.int64]
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True)
class Rows:
    """Some rows of a global batch: which samples, and their positions since training began.

    `shape` is the (height, width) that all rows of the global batch share, None for the data's own.
    """

    samples: Indices
    positions: Indices
    seed: int
    shape: tuple[int, int] | None = None


class Shaped(NamedTuple):
    """Samples that are shown in one (height, width); None for the data's own."""

    shape: tuple[int, int] | None
    samples: Indices | range


@runtime_checkable
class Order(Protocol):
    """Endless; position p is the same sample for any number of ranks and workers."""

    def rows(self, position: int, count: int) -> Rows:
        """The rows at positions position..position+count-1, which lie in one global batch."""


@dataclass(frozen=True)
class _Epoch:
    pieces: Indices  # the pieces in this epoch's order
    starts: Indices  # position at which each of them starts, if its window were not shuffled
    windows: Indices  # position at which each window starts, and the end


class ShuffledOrder:
    """`sizes` are the samples in each shard; shards and the samples in windows are shuffled."""

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        self.seed = seed
        self.window = window
        self.total = sum(sizes)
        if self.total < 1:
            raise ValueError("the data set has no samples; name other shards, or loosen data.keep")
        self._first, self._sizes = _cut(np.asarray(sizes, np.int64), window)
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Indices] = OrderedDict()

    def rows(self, position: int, count: int) -> Rows:
        """Rows may span windows and epochs."""
        found = []
        at = position
        while at < position + count:
            epoch, offset = divmod(at, self.total)
            starts = self._epoch(epoch).windows
            number = int(np.searchsorted(starts, offset, side="right")) - 1
            start = int(starts[number])
            samples = self._window(epoch, number)[offset - start :][: position + count - at]
            found.append(samples)
            at += len(samples)
        positions = np.arange(position, position + count)
        return Rows(np.concatenate(found), positions, self.seed)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            pieces = permutation(self.seed, epoch, 0, length=len(self._sizes))
            ends = np.cumsum(self._sizes[pieces])
            starts = ends - self._sizes[pieces]
            number = starts // self.window
            new = np.flatnonzero(np.diff(number, prepend=-1))
            self._epochs[epoch] = _Epoch(pieces, starts, np.append(starts[new], self.total))
            _forget(self._epochs)
        return self._epochs[epoch]

    def _window(self, epoch: int, number: int) -> Indices:
        if (epoch, number) not in self._windows:
            plan = self._epoch(epoch)
            start, stop = plan.windows[number : number + 2]
            inside = slice(*np.searchsorted(plan.starts, [start, stop]))
            samples = [
                np.arange(self._first[piece], self._first[piece] + self._sizes[piece])
                for piece in plan.pieces[inside]
            ]
            shuffled = permutation(self.seed, epoch, number + 1, length=int(stop - start))
            self._windows[epoch, number] = np.concatenate(samples)[shuffled]
            _forget(self._windows)
        return self._windows[epoch, number]


def _cut(sizes: Indices, window: int) -> tuple[Indices, Indices]:
    """First sample and size of each piece: every non-empty shard, cut evenly to fit a window."""
    first, lengths = [], []
    start = 0
    for size in sizes.tolist():
        parts = -(-size // window)
        for part in range(parts):
            low, high = size * part // parts, size * (part + 1) // parts
            first.append(start + low)
            lengths.append(high - low)
        start += size
    return np.asarray(first, np.int64), np.asarray(lengths, np.int64)


def _forget(kept: OrderedDict[_K, _V]) -> None:
    """A batch touches two neighbours at most; four are plenty."""
    while len(kept) > 4:
        kept.popitem(last=False)
