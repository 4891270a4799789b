"""A shard's index: found, fetched, or built on first use; damage is told before training."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ldm.data.cache import folder_of
from ldm.data.errors import DataError
from ldm.data.index import ShardIndex, build_index, load_index
from ldm.data.reading import Reading
from ldm.data.sources import Source, is_remote

log = logging.getLogger(__name__)
_AT_ONCE = 16


def open_indexes(sources: Sequence[Source], reading: Reading) -> list[ShardIndex]:
    """The indexes of all shards. Raises ValueError for damage and for too many lost samples."""
    with ThreadPoolExecutor(min(_AT_ONCE, len(sources))) as pool:
        indexes = list(pool.map(lambda source: open_index(source, reading), sources))
    _refuse_losses(sources, indexes, reading.tolerate)
    return indexes


def open_index(source: Source, reading: Reading) -> ShardIndex:
    """One shard's index. Raises ValueError where the shard is damaged or cannot be had."""
    try:
        where = stored_index(source, reading)
        if where is None:
            return _built(source, index_path(source, reading), reading)
        index = load_index(where)
        if is_remote(source.name):
            return index  # its size is checked when it is fetched
        size = os.path.getsize(source.name)
    except (OSError, DataError) as error:
        raise ValueError(f"shard {source.name} cannot be opened: {error}") from None
    if size != index.header.bytes:
        return _of_another_size(source.name, where, index, size, reading)
    return index


def _built(source: Source, where: Path, reading: Reading) -> ShardIndex:
    log.info("indexing %s, which happens once", source.name)
    index = build_index(source.local())
    if index.header.damage is None:
        where.parent.mkdir(parents=True, exist_ok=True)
        index.write(where)
    elif not reading.salvage:
        raise ValueError(
            f"{source.name} is damaged: {index.header.damage}; {len(index.records)} whole samples "
            "lie before that; fetch it again, or train on those with data.reading.salvage=true"
        )
    else:
        log.warning("%s is damaged: %s", source.name, index.header.damage)
    return index


def _of_another_size(
    name: str, where: Path, index: ShardIndex, size: int, reading: Reading
) -> ShardIndex:
    """What is whole of a shard that is not as long as its index says."""
    records = index.records
    whole = np.ones(len(records), bool)
    for part in ("", "caption_", "json_"):
        whole &= records[f"{part}offset"] + records[f"{part}size"] <= size
    lost = int(np.sum(~whole))
    if size > index.header.bytes or not reading.salvage:
        raise ValueError(
            f"{name} has {size} bytes and its index says {index.header.bytes}: it was cut or "
            f"changed, {lost} of {len(records)} samples are lost; fetch it again, train on the "
            f"rest with data.reading.salvage=true, or delete {where} if the change is meant"
        )
    log.warning("%s is cut at byte %d: %d of %d samples are lost", name, size, lost, len(records))
    return ShardIndex(index.header, records[whole], index.keys)


def stored_index(source: Source, reading: Reading) -> Path | None:
    """The index that reading goes by; None where it has to be built."""
    where = index_path(source, reading)
    if not where.is_file():
        where = source.fetched_index() or where
    return where if where.is_file() else None


def index_path(source: Source, reading: Reading) -> Path:
    """Beside a local shard, or in the cache folder where that cannot be written."""
    name = source.name
    if not is_remote(name):
        beside = Path(name + ".index")
        if beside.is_file() or os.access(beside.parent, os.W_OK):
            return beside
        name = str(Path(name).resolve())
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return folder_of(reading) / "indexes" / f"{digest}.index"


def _refuse_losses(
    sources: Sequence[Source], indexes: Sequence[ShardIndex], tolerate: float
) -> None:
    """Says how many samples the indexes left out; raises ValueError when they are too many."""
    kinds: Counter[str] = Counter()
    for index in indexes:
        kinds.update(index.header.left_out)
    lost = kinds.total()
    if not lost:
        return
    total = lost + sum(len(index.records) for index in indexes)
    name, index = next(
        (source.name, index)
        for source, index in zip(sources, indexes, strict=True)
        if index.header.left_out
    )
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    message = (
        f"{lost} of {total} samples are left out ({said}), e.g. in {name}: "
        f"{index.header.examples[0]}"
    )
    if lost > tolerate * total:
        raise ValueError(
            f"{message}; that is more than {tolerate:g} of them: mend the shards (`ldm shards "
            "verify` names all), or raise data.reading.tolerate (of `ldm shards make`: --tolerate)"
        )
    log.warning("%s", message)
