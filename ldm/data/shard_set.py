"""A list of shards seen as one numbered sequence of samples."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.errors import DataError
from ldm.data.index import CAPTION_FIELDS, Record, ShardIndex
from ldm.data.keep import Keep
from ldm.data.opening import open_indexes
from ldm.data.order import Indices
from ldm.data.reading import Reading
from ldm.data.sources import expand
from ldm.data.text import caption_of, field_of, record_of

_OPEN_FILES = 64


@dataclass(frozen=True)
class Place:
    """Where a sample lies: the number of its shard and its row in that shard's index."""

    shard: int
    row: int


class ShardSet:
    """Samples 0..len-1 in the order of the shards; what `keep` leaves out has no number."""

    def __init__(self, shards: str | Sequence[str], keep: Keep, reading: Reading) -> None:
        self._files: OrderedDict[int, int] = OrderedDict()
        self.reading = reading
        self.sources = expand(shards, reading)
        self.indexes = open_indexes(self.sources, reading)
        self.rows = [self._kept(shard, index, keep) for shard, index in enumerate(self.indexes)]
        self.sizes = [len(rows) for rows in self.rows]
        self._ends = np.cumsum(self.sizes)
        if not len(self):
            raise ValueError(
                f"no sample is left of {sum(len(index.records) for index in self.indexes)} in "
                f"{self.sources[0].name} …; loosen data.keep"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay with their process."""
        return self.__dict__ | {"_files": OrderedDict()}

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

    def where(self, samples: Indices) -> list[str]:
        """The shards that hold these samples."""
        shards = np.unique(np.searchsorted(self._ends, samples, side="right"))
        return [self.sources[shard].name for shard in shards.tolist()]

    def keys(self, samples: Indices) -> list[str]:
        """The samples' keys."""
        shards, rows = self._places(samples)
        pairs = zip(shards.tolist(), rows.tolist(), strict=True)
        return [self.indexes[shard].key(row) for shard, row in pairs]

    def read_into(self, into: NDArray[Any], samples: Indices, rows: Indices) -> None:
        """Fills these rows of an array of fixed-size records with their samples' bytes."""
        size = into.dtype.itemsize
        lines = into.view(np.uint8).reshape(len(into), size)
        shards, places = self._places(samples[rows])
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            offsets = self.indexes[shard].records["offset"][places[chosen]].tolist()
            for row, offset in zip(rows[chosen].tolist(), offsets, strict=True):
                lines[row] = np.frombuffer(self.read(shard, offset, size), np.uint8)

    def _places(self, samples: Indices) -> tuple[Indices, Indices]:
        """Shard and row of each sample."""
        shards = np.searchsorted(self._ends, samples, side="right")
        rows = np.empty_like(samples)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            start = int(self._ends[shard]) - self.sizes[shard]
            rows[chosen] = self.rows[shard][samples[chosen] - start]
        return shards, rows

    def captions(self) -> Iterator[str]:
        """Every sample's default caption, in order, without touching a picture."""
        for shard, rows in enumerate(self.rows):
            for row in rows.tolist():
                yield self.caption(Place(shard, row))

    def caption(self, place: Place) -> str:
        """The .txt, or where that is missing or empty the JSON's `caption` or `text`."""
        record = self.record(place)
        text = ""
        if record.caption_size:
            raw = self.read(place.shard, record.caption_offset, record.caption_size)
            text = caption_of(raw)
        if not text and record.json_size:
            fields = self.fields(place)
            text = next((found for name in CAPTION_FIELDS if (found := field_of(fields, name))), "")
        return text

    def fields(self, place: Place) -> dict[str, Any]:
        """The sample's JSON record, empty where there is none."""
        record = self.record(place)
        if not record.json_size:
            return {}
        return record_of(self.read(place.shard, record.json_offset, record.json_size))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard. Tries again with growing pauses, then raises DataError."""
        for attempt in range(self.reading.retries + 1):
            try:
                return os.pread(self._file(shard), size, offset)
            except OSError as error:
                self._close(shard)
                reason = error
            if attempt < self.reading.retries:
                time.sleep(0.5 * 2**attempt)
        raise DataError(
            f"shard {self.sources[shard].name} cannot be read ({reason}) after "
            f"{self.reading.retries + 1} tries; bring it back and resume"
        )

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        file = os.open(self.sources[shard].local(), os.O_RDONLY)
        size, wanted = os.fstat(file).st_size, self.indexes[shard].header.bytes
        if size != wanted and not self.reading.salvage:
            os.close(file)
            raise DataError(
                f"shard {self.sources[shard].name} has {size} bytes and its index says {wanted}; "
                "it was cut or changed: bring the right one back and resume"
            )
        self._files[shard] = file
        while len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return self._files[shard]

    def _close(self, shard: int) -> None:
        if shard in self._files:
            os.close(self._files.pop(shard))

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

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
                    "data.keep.missing_caption to drop or empty"
                )
            kept &= ~missing
        rows = np.flatnonzero(kept)
        if keep.scores:
            rows = rows[[self._reaches(Place(shard, row), keep) for row in rows.tolist()]]
        return rows

    def _reaches(self, place: Place, keep: Keep) -> bool:
        fields = self.fields(place)
        for name, least in keep.scores.items():
            value = fields.get(name)
            if not isinstance(value, int | float) or not value >= least:
                return False
        return True
