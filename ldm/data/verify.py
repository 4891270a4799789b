"""Whether shards are whole: every tar readable, every sample as training would read it."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ldm.data.decode import Decoder
from ldm.data.errors import DataError
from ldm.data.index import ShardIndex, build_index, load_index
from ldm.data.opening import stored_index
from ldm.data.reading import Reading
from ldm.data.shard_set import caption_in
from ldm.data.sources import Source

# A bomb is for data.keep.max_pixels to refuse, not for this check.
_DECODER = Decoder((255, 255, 255), max_pixels=1 << 30)


@dataclass(frozen=True)
class Finding:
    """What is wrong with one shard."""

    shard: str
    samples: int
    problems: list[str] = field(default_factory=list)


def verify(source: Source) -> Finding:
    """Reads and decodes all of a shard; the problems name the byte or the key.

    Where there is an index its samples are looked at, since training reads by it alone.
    """
    try:
        path = source.local()
        fresh = build_index(path)
    except (OSError, DataError, ValueError) as error:
        return Finding(source.name, 0, [f"cannot be read: {error}"])
    stored, problems = _stored(source)
    if stored is None or stored.header.bytes != fresh.header.bytes:  # which training refuses
        problems += [fresh.header.damage] if fresh.header.damage else []
        problems += [] if stored is None else _lost(stored, fresh)
        problems += _unreadable(path, fresh)
        return Finding(source.name, len(fresh.records), problems)
    unreadable = _unreadable(path, stored)
    if stored.header.sha256 != fresh.header.sha256:
        hit = len(unreadable) - len(_left_out(stored))
        problems.append(
            f"other bytes than were indexed ({fresh.header.damage or 'the tar itself is whole'}); "
            f"training goes by the index and reads {len(stored.records) - hit} of "
            f"{len(stored.records)} samples"
        )
    return Finding(source.name, len(stored.records), problems + unreadable)


def _stored(source: Source) -> tuple[ShardIndex | None, list[str]]:
    """The index that training goes by, and what is wrong with that itself."""
    where = stored_index(source, Reading())
    if where is None:
        return None, []
    try:
        return load_index(where), []
    except ValueError as error:
        return None, [str(error)]


def _lost(stored: ShardIndex, fresh: ShardIndex) -> Iterator[str]:
    yield (
        f"differs from its index: {fresh.header.bytes} bytes and {len(fresh.records)} samples, "
        f"indexed were {stored.header.bytes} and {len(stored.records)}"
    )
    now = {fresh.key(row): int(fresh.records[row]["crc"]) for row in range(len(fresh.records))}
    for row in range(len(stored.records)):
        key = stored.key(row)
        if key not in now:
            yield f"{key}: lost"
        elif now[key] != int(stored.records[row]["crc"]):
            yield f"{key}: other bytes than were indexed"


def _left_out(index: ShardIndex) -> list[str]:
    """The samples that were unreadable when they were indexed."""
    missing = sum(index.header.left_out.values()) - len(index.header.examples)
    more = [f"… and {missing} more samples that cannot be read"] if missing > 0 else []
    return index.header.examples + more


def _unreadable(path: Path, index: ShardIndex) -> list[str]:
    """The samples that training leaves out, or would replace by others."""
    problems = _left_out(index)
    if index.header.latents is not None:
        return problems
    file = os.open(path, os.O_RDONLY)
    try:
        for row in range(len(index.records)):
            if reason := _reason(file, index, row):
                problems.append(f"{index.key(row)}: {reason}")
    finally:
        os.close(file)
    return problems


def _reason(file: int, index: ShardIndex, row: int) -> str | None:
    """Why training could not read a sample."""
    record = index.record(row)
    raw = os.pread(file, record.size, record.offset)
    if zlib.crc32(raw) != record.crc:
        return "other bytes than were indexed"
    try:
        caption_in(partial(_part, file), record, index.header)
        _DECODER(raw, (record.height, record.width), (0.5, 0.5))
    except Exception as error:  # what a broken file makes a codec raise is not documented
        return f"{type(error).__name__}: {error}"
    return None


def _part(file: int, offset: int, size: int) -> bytes:
    return os.pread(file, size, offset)
