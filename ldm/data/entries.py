"""What shards can be made of: pictures with captions, each named once."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ldm.data.arrow import picture_in_row
from ldm.data.index import PICTURES
from ldm.data.keep import MissingCaption
from ldm.data.text import caption_of, field_of, record_of

METADATA = "metadata.jsonl"


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

    def read(self) -> bytes:
        """The picture's bytes."""
        if self.row is not None:
            return picture_in_row(self.path, self.row)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)

    @property
    def identity(self) -> list[str | int | None]:
        """What a shard is made of, as far as it can be told without reading the picture."""
        length = self.size
        if length is None and self.row is None:
            length = os.path.getsize(self.path)
        return [self.key, self.caption, self.fields, self.offset, length, self.row]

    @property
    def place(self) -> str:
        """What an error calls this entry."""
        return self.path if self.size is None and self.row is None else f"{self.path}, {self.key}"


def of_folder(folder: Path) -> list[Entry]:
    """Pictures with metadata.jsonl, or with .txt files beside them, or one folder per class."""
    if (folder / METADATA).is_file():
        return _of_metadata(folder)
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower()[1:] in PICTURES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not pictures:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    if any(path.with_suffix(".txt").is_file() for path in pictures):
        captions = [_sidecar(path) for path in pictures]
    elif all(path.parent != folder for path in pictures):
        captions = [re.sub(r"[_\s]+", " ", path.parent.name).strip() for path in pictures]
    else:
        raise ValueError(
            f"{folder} says nothing of its pictures; write {METADATA} (file_name, text), a .txt "
            "beside each picture, or sort them into one folder per class"
        )
    names = [path.relative_to(folder).as_posix() for path in pictures]
    return [
        Entry(key, caption, str(path))
        for key, caption, path in zip(keys_of(names), captions, pictures, strict=True)
    ]


def _sidecar(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return ""
    try:
        return caption_of(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; save it as UTF-8") from None


def _of_metadata(folder: Path) -> list[Entry]:
    file = folder / METADATA
    names, captions = [], []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = record_of(line)
            name = record.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError(f"file_name is {json.dumps(name)}; name a picture in {folder}")
            captions.append(field_of(record, "text") or field_of(record, "caption"))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{file}, line {number}: {name!r} leads out of {folder}")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{file}, line {number}: {name!r} does not exist in {folder}")
        names.append(name)
    if not names:
        raise ValueError(f"{file} names no pictures; write one line of JSON for each")
    return [
        Entry(key, caption, str(folder / name))
        for key, caption, name in zip(keys_of(names), captions, names, strict=True)
    ]


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
    missing = [entry for entry in entries if not entry.caption]
    if missing and policy == "error":
        raise ValueError(
            f"{len(missing)} of {len(entries)} pictures have no caption, the first is "
            f"{missing[0].place}; write them, or set --missing-caption drop or empty"
        )
    return [entry for entry in entries if entry.caption or policy == "empty"]
