"""A shard's index: where each sample's parts lie, their sizes and the picture's, and its key.

The index of `x.tar` is `x.tar.index`: one line of JSON, then fixed-size records that are mapped
into memory, then the keys. A sample that can never be read is left out and counted by kind.
"""

import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.data.look import LeftOut, Look, look_at
from ldm.data.tar import Member, scan
from ldm.data.text import REPLACED, caption_of, field_of, record_of

FORMAT = 2
RECORD = np.dtype(
    [
        ("offset", "<u8"),  # the picture's (or the latent record's) bytes in the tar
        ("size", "<u4"),
        ("caption_size", "<u4"),  # the .txt member, 0 bytes where there is none
        ("caption_offset", "<u8"),
        ("json_offset", "<u8"),
        ("json_size", "<u4"),
        ("crc", "<u4"),  # CRC-32 of the picture's bytes
        ("width", "<u4"),  # upright, as a viewer shows it
        ("height", "<u4"),
        ("caption_length", "<u4"),  # characters of the .txt, or else of the JSON's caption
        ("key_size", "<u4"),
        ("key_offset", "<u8"),
        ("jpeg", "<u8"),  # 1 for an upright RGB JPEG, which needs no second look at its header
    ]
)


class Record(NamedTuple):
    """One sample's line in the index, field for field as in RECORD."""

    offset: int
    size: int
    caption_size: int
    caption_offset: int
    json_offset: int
    json_size: int
    crc: int
    width: int
    height: int
    caption_length: int
    key_size: int
    key_offset: int
    jpeg: int


PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"}
LATENTS = "_latents"  # key of the .json that says how latent records are packed
_CAPTIONS = ("caption", "text")  # of a JSON member, where there is no .txt
_EXAMPLES = 20


@dataclass(frozen=True)
class Header:
    """What an index says of its shard as a whole."""

    bytes: int
    sha256: str
    samples: int
    left_out: dict[str, int] = field(default_factory=dict)  # kind of fault: how many samples
    examples: list[str] = field(default_factory=list)  # "key: why", the first of them
    modes: dict[str, int] = field(default_factory=dict)  # Pillow's picture modes: how many
    mended: int = 0  # captions in which U+FFFD stands for NUL, surrogates, or others' losses
    damage: str | None = None
    latents: dict[str, Any] | None = None  # how records are packed, and what they were made by
    recipe: str | None = None  # digest of what `ldm shards make` made it from
    format: int = FORMAT


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard."""

    header: Header
    records: NDArray[Any]
    keys: bytes

    def key(self, row: int) -> str:
        """The key of the shard's sample `row`."""
        record = self.record(row)
        return self.keys[record.key_offset : record.key_offset + record.key_size].decode()

    def record(self, row: int) -> Record:
        """The line of the shard's sample `row`."""
        return Record(*self.records[row].item())

    def write(self, path: Path) -> None:
        """All or nothing: the file appears under its name when it is complete."""
        line = json.dumps(asdict(self.header)).encode()
        line += b" " * (-(len(line) + 1) % 64) + b"\n"
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(line + self.records.tobytes() + self.keys)
        partial.replace(path)


def load_index(path: Path) -> ShardIndex:
    """Raises ValueError where the file is no index of this format."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
            header = Header(**json.loads(line))
            if header.format != FORMAT:
                raise ValueError(f"format {header.format}")
            file.seek(len(line) + header.samples * RECORD.itemsize)
            keys = file.read()
        if header.samples == 0:
            return ShardIndex(header, np.empty(0, RECORD), keys)
        records = np.memmap(path, RECORD, "r", offset=len(line), shape=(header.samples,))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no index of format {FORMAT} ({error}); delete it") from None
    return ShardIndex(header, records, keys)


@dataclass
class _Faults:
    """Samples that are left out."""

    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, key: str, reason: str) -> None:
        self.kinds[kind] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{printable(key)}: {reason}")


def printable(name: str) -> str:
    """A member name or key that can go to a log: no control characters, no lone surrogates."""
    safe = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in safe)


def build_index(path: Path, *, recipe: str | None = None) -> ShardIndex:
    """Reads the whole shard once. Raises OSError where it cannot be read, and ValueError where the
    description of latents cannot."""
    found = scan(path)
    faults = _Faults()
    groups = _grouped(found.members, faults)
    modes: Counter[str] = Counter()
    mended = 0
    records, keys = [], bytearray()
    with path.open("rb") as file:
        try:
            latents = _latents(file, groups.pop(LATENTS, {}))
        except ValueError as error:
            raise ValueError(f"{path}, {LATENTS}.json: {error}; encode anew") from None
        for key, parts in groups.items():
            try:
                record, mode, caption = _sample(lambda member: _read(file, member), parts)
            except LeftOut as fault:
                faults.add(fault.kind, key, fault.reason)
                continue
            name = key.encode()
            record |= {"key_offset": len(keys), "key_size": len(name)}
            keys += name
            modes[mode] += 1
            mended += REPLACED in caption
            records.append(tuple(record.get(name, 0) for name in RECORD.names or ()))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    header = Header(
        bytes=path.stat().st_size,
        sha256=digest,
        samples=len(records),
        left_out=dict(faults.kinds),
        examples=faults.examples,
        modes=dict(modes),
        mended=mended,
        damage=found.damage,
        latents=latents,
        recipe=recipe,
    )
    return ShardIndex(header, np.array(records, RECORD), bytes(keys))


def default_caption(fields: Mapping[str, Any]) -> str:
    """The caption in a sample's JSON record; empty where it holds none."""
    return next((text for name in _CAPTIONS if (text := field_of(fields, name))), "")


def _latents(file: io.BufferedReader, parts: dict[str, Member]) -> dict[str, Any] | None:
    """What `_latents.json` says, and where the empty caption's record lies."""
    if "json" not in parts:
        return None
    null = {"null": parts["latent"].offset} if "latent" in parts else {}
    return record_of(_read(file, parts["json"])) | null


def _read(file: io.BufferedReader, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def split_name(name: str) -> tuple[str, str]:
    """Key and role of a member, by WebDataset's rule: the base name's first dot ends the key.

    The role is "image", "latent", "caption", "json", or "" for what is not used.
    """
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = suffix.lower().rpartition(".")[2]
    key = f"{folder}/{stem}" if folder else stem
    if suffix in PICTURES:
        return key, "image"
    return key, {"txt": "caption", "json": "json", "latent": "latent"}.get(suffix, "")


def _grouped(members: Iterable[Member], faults: _Faults) -> dict[str, dict[str, Member]]:
    """The parts of each sample by key, wherever in the shard they lie."""
    groups: dict[str, dict[str, Member]] = {}
    bad: dict[str, tuple[str, str]] = {}
    for member in members:
        name = member.name.removeprefix("./")
        key, role = split_name(name)
        if not role or name.rpartition("/")[2].startswith("._") or "__MACOSX" in name:
            continue
        parts = groups.setdefault(key, {})
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            bad[key] = ("unsafe member name", f"{printable(name)!r} leads out of a folder")
        elif printable(name) != name:
            bad[key] = ("unsafe member name", f"{printable(name)!r} holds unprintable characters")
        elif role in parts:
            bad[key] = ("duplicate member", f"{parts[role].name!r} and {member.name!r}")
        parts[role] = member
    for key, (kind, reason) in bad.items():
        faults.add(kind, key, reason)
        del groups[key]
    return groups


def _sample(
    read: Callable[[Member], bytes], parts: dict[str, Member]
) -> tuple[dict[str, int], str, str]:
    """The record of one sample, its picture's mode, and its caption."""
    image = parts.get("image") or parts.get("latent")
    if image is None:
        raise LeftOut("no picture", f"only {', '.join(sorted(parts))}")
    raw = read(image)
    look = look_at(raw) if "image" in parts else Look(1, 1, "latents", False)
    record = {
        "offset": image.offset,
        "size": image.size,
        "crc": zlib.crc32(raw),
        "width": look.width,
        "height": look.height,
        "jpeg": int(look.jpeg),
    }
    caption = ""
    try:
        if "json" in parts:
            member = parts["json"]
            record |= {"json_offset": member.offset, "json_size": member.size}
            fields = record_of(read(member))
            caption = default_caption(fields)
        if "caption" in parts:
            member = parts["caption"]
            record |= {"caption_offset": member.offset, "caption_size": member.size}
            caption = caption_of(read(member)) or caption
    except ValueError as error:
        raise LeftOut("unreadable caption", str(error)) from None
    return record | {"caption_length": len(caption)}, look.mode, caption
