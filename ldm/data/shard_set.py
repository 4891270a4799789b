"""A list of shards seen as one numbered sequence of samples."""

import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.errors import DataError
from ldm.data.index import CAPTION_FIELDS, Record, ShardIndex, build_index, load_index
from ldm.data.keep import Keep
from ldm.data.order import Indices
from ldm.data.reading import Reading
from ldm.data.sources import expand
from ldm.data.text import caption_of, field_of, record_of

log = logging.getLogger(__name__)
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
        self.paths = [Path(name) for name in expand(shards)]
        self.indexes = [open_index(path, reading) for path in self.paths]
        refuse_losses(self.paths, self.indexes, reading.tolerate)
        self.rows = [self._kept(shard, index, keep) for shard, index in enumerate(self.indexes)]
        self.sizes = [len(rows) for rows in self.rows]
        self._ends = np.cumsum(self.sizes)
        if not len(self):
            raise ValueError(
                f"no sample is left of {sum(len(index.records) for index in self.indexes)} in "
                f"{self.paths[0]} …; loosen data.keep"
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
        for path, index, rows in zip(self.paths, self.indexes, self.rows, strict=True):
            digest.update(f"{path.name} {index.header.sha256} {len(rows)}\n".encode())
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
            f"shard {self.paths[shard]} cannot be read ({reason}) after "
            f"{self.reading.retries + 1} tries; bring it back and resume"
        )

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
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
                    f"{int(missing.sum())} samples of {self.paths[shard]} have no caption (key "
                    f"{index.key(int(missing.argmax()))} is the first); set "
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


def open_index(path: Path, reading: Reading) -> ShardIndex:
    """The index of a local shard, built on first use. Raises ValueError for a damaged shard."""
    where = index_path(path, reading)
    if where.is_file():
        index = load_index(where)
        size = path.stat().st_size
        if size != index.header.bytes:
            return _of_another_size(path, where, index, size, reading)
    else:
        log.info("indexing %s, which happens once", path)
        index = build_index(path)
        if index.header.damage is None:
            where.parent.mkdir(parents=True, exist_ok=True)
            index.write(where)
    if index.header.damage is not None and not reading.salvage:
        raise ValueError(
            f"{path} is damaged: {index.header.damage}; {len(index.records)} whole samples lie "
            "before that; fetch it again, or set data.reading.salvage=true to use those"
        )
    return index


def _of_another_size(
    path: Path, where: Path, index: ShardIndex, size: int, reading: Reading
) -> ShardIndex:
    """What is whole of a shard that is not as long as its index says."""
    records = index.records
    whole = np.ones(len(records), bool)
    for part in ("", "caption_", "json_"):
        whole &= records[f"{part}offset"] + records[f"{part}size"] <= size
    lost = int(np.sum(~whole))
    if size > index.header.bytes or not reading.salvage:
        raise ValueError(
            f"{path} has {size} bytes and its index says {index.header.bytes}: it was cut or "
            f"changed, {lost} of {len(records)} samples are lost; fetch it again, set "
            f"data.reading.salvage=true to use the rest, or delete {where} if the change is meant"
        )
    log.warning("%s is cut at byte %d: %d of %d samples are lost", path, size, lost, len(records))
    return ShardIndex(index.header, records[whole], index.keys)


def index_path(path: Path, reading: Reading) -> Path:
    """Beside the shard, or in the cache folder where that cannot be written."""
    beside = path.with_name(path.name + ".index")
    if beside.is_file() or os.access(path.parent, os.W_OK):
        return beside
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return cache_folder(reading) / "indexes" / f"{name}.index"


def cache_folder(reading: Reading) -> Path:
    """Where copies and indexes go."""
    if reading.cache is not None:
        return Path(reading.cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ldm"


def refuse_losses(paths: Sequence[Path], indexes: Sequence[ShardIndex], tolerate: float) -> None:
    """Says how many samples the indexes left out; raises ValueError when they are too many."""
    kinds: Counter[str] = Counter()
    for index in indexes:
        kinds.update(index.header.left_out)
    lost = kinds.total()
    if not lost:
        return
    total = lost + sum(len(index.records) for index in indexes)
    path, index = next(
        (path, index) for path, index in zip(paths, indexes, strict=True) if index.header.left_out
    )
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    example = f"e.g. in {path}: {index.header.examples[0]}"
    message = f"{lost} of {total} samples are left out ({said}), {example}"
    if lost > tolerate * total:
        raise ValueError(
            f"{message}; that is more than data.reading.tolerate = {tolerate:g}: mend the shards "
            "(`ldm shards verify` names all) or raise it"
        )
    log.warning("%s", message)
