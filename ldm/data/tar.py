"""Where the members of a tar file lie, and whether the file is whole.

Python's own reader takes a flipped bit in a header, or a file that was cut, for the end of the
archive and says nothing. This scan ends only at the end mark, and says where it stopped otherwise.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
_NOTHING = bytes(BLOCK)
_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_WITHOUT_DATA = {
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
}


@dataclass(frozen=True)
class Member:
    """A regular file in a tar; `offset` is the byte at which its contents start."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Scan:
    """All whole members in their order; `damage` says where and why the rest is unreadable."""

    members: list[Member]
    ignored: list[str]  # links, devices, folders: names of what is not a regular file
    damage: str | None


class _Damaged(Exception):
    """The scan cannot go on; the message says at which byte and why."""


def scan(path: Path) -> Scan:
    """Every member's place. Raises OSError if the file cannot be read."""
    members: list[Member] = []
    ignored: list[str] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            _walk(file, size, members, ignored)
        except _Damaged as damage:
            return Scan(members, ignored, str(damage))
    return Scan(members, ignored, None)


def _walk(file: BinaryIO, size: int, members: list[Member], ignored: list[str]) -> None:
    offset = 0
    longer: dict[str, str] = {}  # what a PAX or GNU header says of the member behind it
    while True:
        info = _header(file, offset, size)
        if info is None:
            return _expect_nothing_behind(file, offset, size)
        contents = offset + BLOCK
        if info.type not in _WITHOUT_DATA:
            length = int(longer.get("size", info.size)) if info.type in _REGULAR else info.size
            if contents + length > size:
                name = longer.get("path", info.name)
                raise _Damaged(f"cut at byte {size}, inside member {name!r}")
            offset = contents + -(-length // BLOCK) * BLOCK
        else:
            length, offset = 0, contents
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            longer |= _pax_records(_contents(file, contents, length))
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            longer["path"] = _text(_contents(file, contents, length).split(b"\0")[0])
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            name = longer.get("path", info.name)
            if info.type in _REGULAR:
                members.append(Member(name, contents, length))
            else:
                ignored.append(name)
            longer = {}


def _header(file: BinaryIO, offset: int, size: int) -> tarfile.TarInfo | None:
    block = _contents(file, offset, BLOCK)
    if block == _NOTHING:
        return None
    if len(block) < BLOCK and offset == 0:
        raise _Damaged(f"no tar: {size} bytes that begin with {block[:16]!r}")
    if len(block) < BLOCK:
        raise _Damaged(f"cut at byte {size}: the end mark (a block of zeros) is missing")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _Damaged(f"no tar header at byte {offset} ({error}): {block[:16]!r}…") from None


def _expect_nothing_behind(file: BinaryIO, offset: int, size: int) -> None:
    file.seek(offset)
    for start in range(offset, size, 1 << 20):
        if file.read(1 << 20).strip(b"\0"):
            raise _Damaged(f"data behind the end mark at byte {start} (tars that were appended?)")


def _contents(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _pax_records(raw: bytes) -> dict[str, str]:
    """`path` and `size` of a PAX header, whose records read `length key=value\\n`."""
    records = {}
    while raw.strip(b"\0"):
        length, _, rest = raw.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(raw):
            raise _Damaged(f"unreadable PAX header {raw[:16]!r}…")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key in (b"path", b"size"):
            records[key.decode()] = _text(value)
        raw = raw[int(length) :]
    return records
