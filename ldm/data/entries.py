"""What shards can be made of: pictures with captions, each named once."""

import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.arrow import picture_in_row
from ldm.data.index import PICTURES
from ldm.data.keep import Keep, MissingCaption
from ldm.data.look import Look, look_into
from ldm.data.losses import Losses
from ldm.data.text import caption_of, cleaned, field_of, record_of

METADATA = "metadata.jsonl"
_AT_ONCE = 16
_UNREAD = {"heic", "heif", "avif", "jxl"}  # as cameras and telephones write them


@dataclass(frozen=True)
class Entry:
    """One picture: `size` bytes of `path` from `offset` on; all of the file if size is None.

    With a `row`, the picture lies in that row of an Arrow file instead.
    """

    key: str
    caption: str
    path: str
    offset: int = 0
    size: int | None = None
    row: int | None = None
    fields: str = ""  # JSON that is kept beside the caption
    fault: str = ""  # why the caption cannot be read
    crc: int | None = None  # CRC-32 of the bytes, where the index of a shard tells it

    def read(self) -> bytes:
        """The picture's bytes. Raises ValueError where they are not those that were indexed."""
        if self.row is not None:
            return picture_in_row(self.path, self.row)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            raw = file.read() if self.size is None else file.read(self.size)
        if self.crc is not None and zlib.crc32(raw) != self.crc:
            raise ValueError("the picture's bytes differ from the index's checksum")
        return raw

    def look(self) -> Look:
        """What the picture's header says. Raises whatever a codec does."""
        if self.size is not None or self.row is not None:
            return look_into(io.BytesIO(self.read()))
        with open(self.path, "rb") as file:
            return look_into(file)

    @property
    def identity(self) -> list[str | int | None]:
        """What a shard is made of, as far as it can be told without reading the picture."""
        length = self.size
        if length is None and self.row is None:
            with suppress(OSError):  # it is named when it is read
                length = os.path.getsize(self.path)
        return [self.key, self.caption, self.fields, self.offset, length, self.row]

    @property
    def place(self) -> str:
        """What an error calls this entry."""
        return self.path if self.size is None and self.row is None else f"{self.path}, {self.key}"


def of_folder(folder: Path, losses: Losses) -> list[Entry]:
    """Pictures with metadata.jsonl, or with .txt files beside them, or one folder per class."""
    if (folder / METADATA).is_file():
        return _of_metadata(folder, losses)
    pictures = sorted(p for p in _files(folder) if p.suffix.lower()[1:] in PICTURES | _UNREAD)
    if not pictures:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    if any(path.with_suffix(".txt").is_file() for path in pictures):
        captions = [_sidecar(path) for path in pictures]
    elif all(path.parent != folder for path in pictures):
        captions = [(cleaned(re.sub(r"[_\s]+", " ", path.parent.name)), "") for path in pictures]
    else:
        raise ValueError(
            f"{folder} says nothing of its pictures; write {METADATA} (file_name, text), a .txt "
            "beside each picture, or sort them into one folder per class"
        )
    names = [path.relative_to(folder).as_posix() for path in pictures]
    return [
        Entry(key, caption, str(path), fault=_unread(path) or fault)
        for key, (caption, fault), path in zip(keys_of(names), captions, pictures, strict=True)
    ]


def _unread(picture: Path) -> str:
    """Why a picture of this kind is none for us."""
    kind = picture.suffix.lower()
    return f"{kind} is not read; convert it to JPEG or PNG" if kind[1:] in _UNREAD else ""


def _files(folder: Path) -> Iterator[Path]:
    """What lies in a folder and those inside, linked ones too; nothing whose name begins with a
    dot, as what file managers leave."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in seen
        ]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _sidecar(picture: Path) -> tuple[str, str]:
    """The caption beside a picture, and what is wrong with it."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return "", ""
    try:
        return caption_of(path.read_bytes()), ""
    except (ValueError, OSError) as error:
        return "", f"{path.name}: {error}"


def _of_metadata(folder: Path, losses: Losses) -> list[Entry]:
    file = folder / METADATA
    names, found = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = record_of(line)
            name = record.pop("file_name", None)
            if not isinstance(name, str) or not name:
                raise ValueError(f"file_name is {json.dumps(name)}; name a picture in {folder}")
            text, caption = field_of(record, "text"), field_of(record, "caption")
            refuse_path(folder, name)
        except ValueError as error:
            losses.add(f"{file}, line {number}", error)
            continue
        names.append(name)
        found.append((text or caption, str(folder / name), more_fields(record)))
    if not names and not losses.count:
        raise ValueError(f"{file} names no pictures; write one line of JSON for each")
    return [
        Entry(key, caption, path, fields=fields)
        for key, (caption, path, fields) in zip(keys_of(names), found, strict=True)
    ]


def refuse_path(folder: Path, name: str) -> None:
    """ValueError where a table names no file of its folder."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}")
    if not (folder / name).is_file():
        raise ValueError(f"{name!r} does not exist in {folder}")


def more_fields(record: Mapping[str, Any]) -> str:
    """What a record says beside its caption, as JSON for the shard; empty where that is nothing."""
    if all(name in ("text", "caption") for name in record):
        return ""
    return json.dumps(record)


def keys_of(names: Iterable[str]) -> list[str]:
    """A WebDataset key for each name: no dots, no way out of a folder, none twice."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        stem = name.rpartition(".")[0] or name
        key = re.sub(r"[^\w/-]", "_", stem).strip("/") or "_"
        seen[key] += 1
        while seen[key] > 1:
            key = f"{key}-{seen[key]}"
            seen[key] += 1
        keys.append(key)
    return keys


def with_captions(entries: list[Entry], policy: MissingCaption) -> list[Entry]:
    """Raises ValueError for an empty caption, or drops such entries, or lets them be."""
    missing = [entry for entry in entries if not (entry.caption or entry.fault)]
    if missing and policy == "error":
        raise ValueError(
            f"{len(missing)} of {len(entries)} pictures have no caption, the first is "
            f"{missing[0].place}; write them, or set --missing-caption drop or empty"
        )
    if policy == "drop" and len(missing) == len(entries):
        raise ValueError(f"all {len(entries)} pictures are without a caption; write some")
    return [entry for entry in entries if entry.caption or entry.fault or policy == "empty"]


def kept(entries: list[Entry], keep: Keep) -> list[Entry]:
    """Those that are as `keep` asks, by their fields and by their pictures' headers. A picture
    whose header cannot be read stays, to be named when it is encoded."""
    if keep.scores:
        entries = [e for e in entries if keep.reaches(json.loads(e.fields) if e.fields else {})]
    if keep.min_side <= 1 and keep.max_aspect is None:
        return entries
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        fit = list(pool.map(lambda entry: _fits(entry, keep), entries))
    return [entry for entry, fits in zip(entries, fit, strict=True) if fits]


def _fits(entry: Entry, keep: Keep) -> bool:
    try:
        look = entry.look()
    except Exception:  # what a broken file makes a codec raise is not documented
        return True
    return keep.fits(look.width, look.height)
