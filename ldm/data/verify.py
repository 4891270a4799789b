"""Whether shards are whole: every tar readable, every picture decodable, every index true."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ldm.data.decode import Decoder
from ldm.data.index import ShardIndex, build_index, load_index

_PIXELS = 1 << 30  # a bomb is for data.keep.max_pixels to refuse, not for this check


@dataclass(frozen=True)
class Finding:
    """What is wrong with one shard."""

    shard: str
    samples: int
    problems: list[str] = field(default_factory=list)


def verify(path: str) -> Finding:
    """Reads and decodes all of a local shard; the problems name the byte or the key."""
    problems: list[str] = []
    try:
        fresh = build_index(Path(path))
    except OSError as error:
        return Finding(path, 0, [f"cannot be read: {error}"])
    if fresh.header.damage is not None:
        problems.append(fresh.header.damage)
    problems += fresh.header.examples
    missing = sum(fresh.header.left_out.values()) - len(fresh.header.examples)
    if missing > 0:
        problems.append(f"… and {missing} more samples that cannot be read")
    problems += _against_stored(Path(path + ".index"), fresh)
    if fresh.header.latents is None:
        problems += _undecodable(path, fresh)
    return Finding(path, len(fresh.records), problems)


def _against_stored(where: Path, fresh: ShardIndex) -> Iterator[str]:
    if not where.is_file():
        return
    try:
        stored = load_index(where)
    except ValueError as error:
        yield str(error)
        return
    if stored.header.sha256 == fresh.header.sha256:
        return
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


def _undecodable(path: str, index: ShardIndex) -> Iterator[str]:
    decoder = Decoder((255, 255, 255), _PIXELS)
    file = os.open(path, os.O_RDONLY)
    try:
        for row in range(len(index.records)):
            record = index.record(row)
            raw = os.pread(file, record.size, record.offset)
            try:
                if zlib.crc32(raw) != record.crc:
                    raise ValueError("its bytes changed while they were read")
                decoder(raw, (record.height, record.width), (0.5, 0.5))
            except Exception as error:  # what a broken file makes a codec raise is not documented
                yield f"{index.key(row)}: {type(error).__name__}: {error}"
    finally:
        os.close(file)
