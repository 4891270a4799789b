"""Several data sets in stated proportions, in an order that is a pure function of the position."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.data.errors import Fault
from ldm.data.loading import Data
from ldm.data.order import Indices, Order, Rows, Shaped
from ldm.data.random import permutation, scattered
from ldm.types import Condition

_CYCLE = 10_000  # positions in which the shares are exact; weights are rounded to 1/10,000


class MixedData:
    """Draws from each of `data` in proportion to its weight; each goes through its own epochs.

    Raises ValueError for weights that cannot be shares.
    """

    def __init__(self, data: Sequence[Data], weights: Sequence[float]) -> None:
        if len(data) != len(weights) or not data:
            raise ValueError(f"{len(data)} data sets have {len(weights)} weights; set one for each")
        if min(weights) <= 0:
            raise ValueError(f"weights are {list(weights)}; set each above 0")
        self.data = list(data)
        self.counts = _shares(weights)
        self.reading = data[0].reading
        self._ends = np.cumsum([len(part) for part in data])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def content_hash(self) -> str:
        """Changes with any part's contents or share."""
        parts = [part.content_hash for part in self.data]
        return hashlib.sha256(repr((parts, self.counts.tolist())).encode()).hexdigest()

    @property
    def remote(self) -> bool:
        """Whether a part has anything to prefetch."""
        return any(part.remote for part in self.data)

    def captions(self) -> Iterator[str]:
        """Every part's captions, one part behind the other."""
        for part in self.data:
            yield from part.captions()

    def order(self, seed: int, global_batch: int) -> Order:
        """Each part keeps an order of its own."""
        numbers = scattered(seed, 1, counters=np.arange(len(self.data))) >> np.uint64(1)
        orders = [
            part.order(own, global_batch)
            for part, own in zip(self.data, numbers.tolist(), strict=True)
        ]
        return _MixedOrder(orders, self.counts, self._ends, seed)

    def shaped(self) -> list[Shaped]:
        """All in one shape: a batch holds samples of several parts."""
        return [Shaped(None, range(len(self)))]

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""
        return [
            name for number, _, own in self._parts(rows) for name in self.data[number].where(own)
        ]

    def prefetch(self, rows: Rows) -> None:
        """Begins to fetch what these rows need."""
        for number, _, own in self._parts(rows):
            self.data[number].prefetch(own)

    def null_text(self) -> Condition | None:
        """That of the first part; the others' is the same, as their text encoder is."""
        return self.data[0].null_text()

    def read(self, rows: Rows) -> tuple[Any, list[Fault]]:
        """A batch whose rows come from several parts; the parts' batches hold the same fields."""
        batches, places, faults = [], [], []
        for number, chosen, own in self._parts(rows):
            batch, lost = self.data[number].read(own)
            batches.append(batch)
            places.append(chosen)
            faults += lost
        back = np.argsort(np.concatenate(places))
        return {name: _joined([b[name] for b in batches], back) for name in batches[0]}, faults

    def _parts(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.int64], Rows]]:
        owner = np.searchsorted(self._ends, rows.samples, side="right")
        for number in np.unique(owner).tolist():
            chosen = np.flatnonzero(owner == number)
            first = int(self._ends[number]) - len(self.data[number])
            own = rows.samples[chosen] - first
            yield number, chosen, Rows(own, rows.positions[chosen], rows.seed, rows.shape)


def _shares(weights: Sequence[float]) -> Indices:
    """Positions of a cycle for each weight; the rest goes to the largest remainders."""
    exact = np.asarray(weights, np.float64) / sum(weights) * _CYCLE
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    for part in np.argsort(np.floor(exact) - exact, kind="stable")[: _CYCLE - counts.sum()]:
        counts[part] += 1
    return counts


def _joined(values: list[Any], back: NDArray[np.int64]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)[torch.from_numpy(back)]
    rows = [row for value in values for row in value]
    return [rows[place] for place in back.tolist()]


class _MixedOrder:
    """A cycle's positions are dealt to the parts by a permutation of its own, so how many of a
    part's samples lie before any position is known without walking there."""

    def __init__(self, orders: list[Order], counts: Indices, ends: Indices, seed: int) -> None:
        self.orders = orders
        self.counts = counts
        self.ends = ends
        self.seed = seed
        self.cycle = int(counts.sum())
        self._dealt: tuple[int, Indices] = (-1, counts)

    def rows(self, position: int, count: int) -> Rows:
        samples = np.empty(count, np.int64)
        done = 0
        while done < count:
            cycle, offset = divmod(position + done, self.cycle)
            dealt = self._deal(cycle)
            here = dealt[offset : offset + count - done]
            for part in np.unique(here).tolist():
                chosen = np.flatnonzero(here == part)
                before = cycle * int(self.counts[part]) + int((dealt[:offset] == part).sum())
                own = self.orders[part].rows(before, len(chosen)).samples
                start = int(self.ends[part - 1]) if part else 0
                samples[done + chosen] = own + start
            done += len(here)
        return Rows(samples, np.arange(position, position + count), self.seed)

    def _deal(self, cycle: int) -> Indices:
        if self._dealt[0] != cycle:
            slots = np.repeat(np.arange(len(self.counts)), self.counts)
            self._dealt = cycle, slots[permutation(self.seed, 2, cycle, length=self.cycle)]
        return self._dealt[1]
