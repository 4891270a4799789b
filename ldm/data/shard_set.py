"""A list of shards seen as one numbered sequence of samples."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.data.ahead import Ahead
from ldm.data.index import (
    RECORD,
    Header,
    Record,
    ShardIndex,
    default_caption,
)
from ldm.data.keep import Keep
from ldm.data.open_files import OpenFiles
from ldm.data.opening import open_indexes
from ldm.data.order import Indices
from ldm.data.reading import Reading
from ldm.data.sources import expand
from ldm.data.text import REPLACED, caption_of, record_of


@dataclass(frozen=True)
class Place:
    """Where a sample lies: the number of its shard and its row in that shard's index."""

    shard: int
    row: int


class Lines(NamedTuple):
    """What the indexes say of some samples: the numbers of their shards, and their lines there."""

    shards: Indices
    records: NDArray[Any]


def caption_in(read: Callable[[int, int], bytes], record: Record, header: Header) -> str:
    """A sample's caption, from the `read(offset, size)` of its shard. A caption has no checksum:
    ValueError where it has another length than was indexed, or characters that cannot be read
    where the whole shard had none."""
    text = ""
    if record.caption_size:
        text = caption_of(read(record.caption_offset, record.caption_size))
    if not text and record.json_size:
        text = default_caption(record_of(read(record.json_offset, record.json_size)))
    if len(text) != record.caption_length or (REPLACED in text and not header.mended):
        raise ValueError(f"the caption is not the one that was indexed ({text[:24]!r})")
    return text


class ShardSet:
    """Samples 0..len-1 in the order of the shards; what `keep` leaves out has no number."""

    def __init__(self, shards: str | Sequence[str], keep: Keep, reading: Reading) -> None:
        self.reading = reading
        self.sources = expand(shards, reading)
        self.indexes = open_indexes(self.sources, reading)
        bytes_of = [index.header.bytes for index in self.indexes]
        self.files = OpenFiles(self.sources, bytes_of, reading)
        self.ahead = Ahead(self.sources)
        self.rows = [self._kept(shard, index, keep) for shard, index in enumerate(self.indexes)]
        self.sizes = [len(rows) for rows in self.rows]
        self._ends = np.cumsum(self.sizes)
        if not len(self):
            raise ValueError(
                f"no sample is left of {sum(len(index.records) for index in self.indexes)} in "
                f"{self.sources[0].name} …; loosen data.keep (of `ldm shards make`: --min-side, "
                "--max-aspect, --min-score)"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def content_hash(self) -> str:
        """Changes with any byte of any shard, their order, and what is left out."""
        digest = hashlib.sha256()
        for source, index, rows in zip(self.sources, self.indexes, self.rows, strict=True):
            digest.update(f"{source.base} {index.header.sha256} {len(rows)}\n".encode())
            if len(rows) < len(index.records):
                digest.update(rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def place(self, sample: int) -> Place:
        """Where a sample lies."""
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        start = int(self._ends[shard]) - self.sizes[shard]
        return Place(shard, int(self.rows[shard][sample - start]))

    def key(self, place: Place) -> str:
        """The sample's key, unique in its shard."""
        return self.indexes[place.shard].key(place.row)

    def record(self, place: Place) -> Record:
        """The sample's line in its shard's index."""
        return self.indexes[place.shard].record(place.row)

    def shards(self, samples: Indices) -> list[int]:
        """The numbers of the shards that hold these samples."""
        return np.unique(np.searchsorted(self._ends, samples, side="right")).tolist()

    def where(self, samples: Indices) -> list[str]:
        """The names of the shards that hold these samples."""
        return [self.sources[shard].name for shard in self.shards(samples)]

    def lines(self, samples: Indices) -> Lines:
        """The samples' lines in their shards' indexes."""
        shards = np.searchsorted(self._ends, samples, side="right")
        records = np.empty(len(samples), RECORD)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            start = int(self._ends[shard]) - self.sizes[shard]
            rows = self.rows[shard][samples[chosen] - start]
            records[chosen] = self.indexes[shard].records[rows]
        return Lines(shards, records)

    def keys(self, lines: Lines) -> list[str]:
        """The samples' keys."""
        starts = lines.records["key_offset"].tolist()
        ends = (lines.records["key_offset"] + lines.records["key_size"]).tolist()
        return [
            self.indexes[shard].keys[start:end].decode()
            for shard, start, end in zip(lines.shards.tolist(), starts, ends, strict=True)
        ]

    def captions(self) -> Iterator[str]:
        """Every sample's default caption, in order, without touching a picture."""
        for shard, rows in enumerate(self.rows):
            for row in rows.tolist():
                place = Place(shard, row)
                try:
                    yield self.caption(place)
                except ValueError as error:  # it was readable when it was indexed
                    raise ValueError(
                        f"{self.named(place)}: {error}; bring the right shard back"
                    ) from None

    def named(self, place: Place) -> str:
        """What an error calls the sample."""
        return f"{self.sources[place.shard].name}, key {self.key(place)}"

    def caption(self, place: Place) -> str:
        """The .txt, or where that is missing or empty the JSON's `caption` or `text`."""
        read = partial(self.files.read, place.shard)
        return caption_in(read, self.record(place), self.indexes[place.shard].header)

    def fields(self, place: Place) -> dict[str, Any]:
        """The sample's JSON record, empty where there is none."""
        record = self.record(place)
        if not record.json_size:
            return {}
        return record_of(self.files.read(place.shard, record.json_offset, record.json_size))

    def _kept(self, shard: int, index: ShardIndex, keep: Keep) -> Indices:
        records = index.records
        short = np.minimum(records["width"], records["height"]).astype(np.int64)
        long = np.maximum(records["width"], records["height"]).astype(np.int64)
        kept = (short >= keep.min_side) & (short * long <= keep.max_pixels)
        if keep.max_aspect is not None:
            kept &= long <= keep.max_aspect * short
        if keep.missing_caption != "empty":
            missing = kept & (records["caption_length"] == 0)
            if keep.missing_caption == "error" and missing.any():
                raise ValueError(
                    f"{int(missing.sum())} samples of {self.sources[shard].name} have no caption "
                    f"(key {index.key(int(missing.argmax()))} is the first); set "
                    "data.keep.missing_caption=drop (or empty), or write them"
                )
            kept &= ~missing
        rows = np.flatnonzero(kept)
        if keep.scores:
            rows = rows[[self._reaches(Place(shard, row), keep) for row in rows.tolist()]]
        return rows

    def _reaches(self, place: Place, keep: Keep) -> bool:
        try:
            return keep.reaches(self.fields(place))
        except ValueError as error:  # it was readable when it was indexed
            raise ValueError(f"{self.named(place)}: {error}; bring the right shard back") from None
