"""Pictures of several shapes: every global batch has one, the same on all ranks.

Aspect-ratio buckets (NovelAI 2022; SDXL, arXiv:2307.01952, section 2.3): shapes of about the same
area, and each picture goes to the one whose aspect is nearest to its own.
"""

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ldm.data.errors import Fault
from ldm.data.order import Indices, Order, Rows, Shaped, ShuffledOrder
from ldm.data.shards import PictureBatch, ShardData


def shapes_of(size: int, multiple: int, max_aspect: float) -> list[tuple[int, int]]:
    """(height, width), multiples of `multiple`, as large as fit into size² pixels."""
    shapes = set()
    for width in range(multiple, size * size // multiple + 1, multiple):
        height = size * size // width // multiple * multiple
        if height and max(width / height, height / width) <= max_aspect:
            shapes |= {(height, width), (width, height)}
    return sorted(shapes)


class BucketedData:
    """The pictures of `data` in shapes of about `data.size`² pixels; sides are multiples of
    `multiple` and differ at most by the factor `max_aspect`.

    An epoch leaves out what does not fill a global batch: less than one batch a bucket, and others
    in each epoch. Validation shows all of them; use `data` itself to have it in one shape.
    """

    def __init__(self, data: ShardData, *, multiple: int = 64, max_aspect: float = 2.0) -> None:
        if multiple < 1 or not max_aspect >= 1:
            raise ValueError(
                f"multiple is {multiple} and max_aspect {max_aspect:g}; set both to 1 or more"
            )
        self.data = data
        self.reading = data.reading
        self.shapes = shapes_of(data.size, multiple, max_aspect)
        if not self.shapes:
            raise ValueError(
                f"no shape of {data.size}² pixels has sides of {multiple}; lower "
                "data.train.multiple"
            )
        self.buckets = self._assigned()

    def __len__(self) -> int:
        return len(self.data)

    @property
    def content_hash(self) -> str:
        """That of the pictures."""
        return self.data.content_hash

    @property
    def remote(self) -> bool:
        """That of the pictures."""
        return self.data.remote

    def captions(self) -> Iterator[str]:
        """That of the pictures."""
        return self.data.captions()

    def order(self, seed: int, global_batch: int) -> Order:
        """Raises ValueError when no bucket fills a global batch."""
        shuffled = ShuffledOrder(self.data.set.sizes, seed, self.reading.window)
        return _BucketedOrder(shuffled, self.buckets, self.shapes, global_batch)

    def shaped(self) -> list[Shaped]:
        """The buckets that hold anything."""
        members = [np.flatnonzero(self.buckets == bucket) for bucket in range(len(self.shapes))]
        return [
            Shaped(shape, own) for shape, own in zip(self.shapes, members, strict=True) if len(own)
        ]

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""
        return self.data.where(rows)

    def prefetch(self, rows: Rows) -> None:
        """That of the pictures."""
        self.data.prefetch(rows)

    def null_text(self) -> None:
        """Pictures come with captions."""

    def read(self, rows: Rows) -> tuple[PictureBatch, list[Fault]]:
        """The rows' pictures, all of the rows' shape."""
        return self.data.read(rows)

    def _assigned(self) -> NDArray[np.int16]:
        """The bucket of each sample: the nearest on a logarithmic scale of aspects."""
        aspects = np.log([height / width for height, width in self.shapes])
        order = np.argsort(aspects, kind="stable")
        middles = (aspects[order][1:] + aspects[order][:-1]) / 2
        found = []
        for index, rows in zip(self.data.set.indexes, self.data.set.rows, strict=True):
            own = np.log(index.records["height"][rows] / index.records["width"][rows])
            found.append(order[np.searchsorted(middles, own)].astype(np.int16))
        return np.concatenate(found)


class _BucketedOrder:
    """The k-th batch of an epoch is the k-th that fills up when the samples, in the epoch's
    shuffled order, are dropped into their buckets."""

    def __init__(
        self,
        shuffled: ShuffledOrder,
        buckets: NDArray[np.int16],
        shapes: list[tuple[int, int]],
        global_batch: int,
    ) -> None:
        self.shuffled = shuffled
        self.buckets = buckets
        self.shapes = shapes
        self.global_batch = global_batch
        sizes = np.bincount(buckets, minlength=len(shapes))
        self.batches = int((sizes // global_batch).sum())
        if not self.batches:
            raise ValueError(
                f"a global batch of {global_batch} is larger than every bucket (the fullest has "
                f"{int(sizes.max())} samples); lower global_batch or the number of shapes"
            )
        self._epochs: OrderedDict[int, Indices] = OrderedDict()

    def rows(self, position: int, count: int) -> Rows:
        number, offset = divmod(position, self.global_batch)
        if offset + count > self.global_batch:
            raise ValueError(
                f"position {position} is in the middle of a global batch of {self.global_batch}; "
                "with buckets a run goes on with the global batch that it began with"
            )
        epoch, batch = divmod(number, self.batches)
        samples = self._epoch(epoch)[batch, offset : offset + count]
        shape = self.shapes[int(self.buckets[samples[0]])]
        positions = np.arange(position, position + count)
        return Rows(samples, positions, self.shuffled.seed, shape)

    def _epoch(self, epoch: int) -> Indices:
        """Samples `[batches, global_batch]`, in the order in which the batches fill up."""
        if epoch not in self._epochs:
            total = self.shuffled.total
            samples = self.shuffled.rows(epoch * total, total).samples
            own = self.buckets[samples]
            places = np.argsort(own, kind="stable")  # by bucket, and in order within each
            full = []
            for members in np.split(places, np.flatnonzero(np.diff(own[places])) + 1):
                whole = len(members) // self.global_batch * self.global_batch
                full.append(members[:whole].reshape(-1, self.global_batch))
            batches = np.concatenate(full)
            self._epochs[epoch] = samples[batches[np.argsort(batches[:, -1])]]
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]
