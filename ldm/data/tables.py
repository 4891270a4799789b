"""Pictures named in a CSV or Parquet file, in a Hugging Face data set, or in other shards."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ldm.data.arrow import arrow_column, arrow_columns, parquet_rows, picture_column
from ldm.data.entries import Entry, keys_of, of_folder
from ldm.data.keep import Keep
from ldm.data.reading import Reading
from ldm.data.shard_set import Place, ShardSet
from ldm.data.sources import is_remote
from ldm.data.text import cleaned

_PATHS = ("file_name", "path", "file", "filepath", "image_path", "image")
_CAPTIONS = ("text", "caption", "prompt")


def entries_of(source: str, keep: Keep, tolerate: float) -> list[Entry]:
    """The pictures of a folder, a table, a Hugging Face data set on disk, or shards.

    Raises ValueError or FileNotFoundError, naming what is wrong and where.
    """
    path = Path(source)
    if path.is_dir():
        if list(path.glob("*.arrow")):
            return _of_arrow(path)
        if list(path.glob("*.tar")):
            return _of_shards(str(path / "*.tar"), keep, tolerate)
        return of_folder(path)
    if path.suffix.lower() == ".csv":
        return _of_csv(path)
    if path.suffix.lower() == ".parquet":
        return _of_rows(path, parquet_rows(path))
    if ".tar" in source or is_remote(source):
        return _of_shards(source, keep, tolerate)
    raise FileNotFoundError(
        f"{source} is neither a folder nor a .csv, .parquet or .tar; name one that exists"
    )


def _of_csv(path: Path) -> list[Entry]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _of_rows(path, list(csv.DictReader(file)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _column(path: Path, names: Iterable[str], wanted: tuple[str, ...], what: str) -> str:
    found = list(names)
    column = next((name for name in wanted if name in found), None)
    if column is None:
        raise ValueError(f"{path} has columns {found}; call that of the {what} {wanted[0]}")
    return column


def _of_rows(path: Path, rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> list[Entry]:
    if not rows:
        raise ValueError(f"{path} has no rows; write one for each picture")
    pictures = _column(path, rows[0], _PATHS, "pictures")
    captions = _column(path, rows[0], _CAPTIONS, "captions")
    names = []
    for number, row in enumerate(rows, 1):
        name = row[pictures]
        if not isinstance(name, str) or not (path.parent / name).is_file():
            raise FileNotFoundError(f"{path}, row {number}: {name!r} does not exist")
        names.append(name)
    return [
        Entry(key, cleaned(str(row[captions] or "")), str(path.parent / name))
        for key, row, name in zip(keys_of(names), rows, names, strict=True)
    ]


def _of_arrow(folder: Path) -> list[Entry]:
    names, captions, places = [], [], []
    for path in sorted(folder.glob("*.arrow")):
        column = _column(path, arrow_columns(str(path)), _CAPTIONS, "captions")
        picture_column(str(path))  # refuses a file without pictures
        for row, caption in enumerate(arrow_column(str(path), column)):
            names.append(f"{path.stem}/{row:08d}.picture")
            captions.append(cleaned(str(caption or "")))
            places.append((str(path), row))
    return [
        Entry(key, caption, path, row=row)
        for key, caption, (path, row) in zip(keys_of(names), captions, places, strict=True)
    ]


def _of_shards(shards: str, keep: Keep, tolerate: float) -> list[Entry]:
    found = ShardSet(shards, keep, Reading(tolerate=tolerate, cache_gigabytes=1e6))
    names, entries = [], []
    for shard, rows in enumerate(found.rows):
        path = str(found.sources[shard].local())
        for row in rows.tolist():
            place = Place(shard, row)
            record, fields = found.record(place), found.fields(place)
            names.append(found.key(place) + ".picture")
            entries.append(
                Entry(
                    names[-1],
                    found.caption(place),
                    path,
                    record.offset,
                    record.size,
                    fields=json.dumps(fields) if fields else "",
                )
            )
    return [
        Entry(key, e.caption, e.path, e.offset, e.size, fields=e.fields)
        for key, e in zip(keys_of(names), entries, strict=True)
    ]
