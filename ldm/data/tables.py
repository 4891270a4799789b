"""Pictures named in a CSV or Parquet file, in a Hugging Face data set, or in other shards."""

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ldm.data.arrow import arrow_column, arrow_columns, parquet_rows, picture_column
from ldm.data.entries import Entry, kept, keys_of, of_folder
from ldm.data.keep import Keep
from ldm.data.losses import Losses
from ldm.data.reading import Reading
from ldm.data.shard_set import Place, ShardSet
from ldm.data.sources import is_remote
from ldm.data.text import cleaned

_PATHS = ("file_name", "path", "file", "filepath", "image_path", "image")
_CAPTIONS = ("text", "caption", "prompt")


class Found(NamedTuple):
    """The pictures of a source, and how many `keep` left out."""

    entries: list[Entry]
    unfit: int


def entries_of(source: str, keep: Keep, losses: Losses) -> Found:
    """The pictures of a folder, a table, a Hugging Face data set on disk, or shards, without those
    that `keep` leaves out. What cannot be read goes to `losses`.

    Raises ValueError or FileNotFoundError, naming what is wrong and where.
    """
    path = Path(source)
    if path.is_dir() and list(path.glob("*.tar")):
        return _of_shards(str(path / "*.tar"), keep, losses)
    if path.is_dir():
        found = _of_arrow(path) if list(path.glob("*.arrow")) else of_folder(path, losses)
    elif path.suffix.lower() == ".csv":
        found = _of_rows(path, _csv_rows(path), keep, losses)
    elif path.suffix.lower() == ".parquet":
        found = _of_rows(path, parquet_rows(path), keep, losses)
    elif ".tar" in source or is_remote(source):
        return _of_shards(source, keep, losses)
    else:
        raise FileNotFoundError(
            f"{source} is neither a folder nor a .csv, .parquet or .tar; name one that exists"
        )
    for name in keep.scores or {}:
        if found and not any(f'"{name}"' in entry.fields for entry in found):
            raise ValueError(
                f"--min-score {name}: {source} says no {name} of any picture; write it into "
                "metadata.jsonl or the table, or take the option out"
            )
    fit = kept(found, keep)
    if not fit:
        losses.refuse(losses.count)
        raise ValueError(
            f"no picture is left of {len(found)} in {source}; loosen --min-side, --max-aspect or "
            "--min-score"
        )
    return Found(fit, len(found) - len(fit))


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no readable CSV file ({error}); save it anew") from None


def _column(path: Path, names: Iterable[str], wanted: tuple[str, ...], what: str) -> str:
    found = list(names)
    column = next((name for name in wanted if name in found), None)
    if column is None:
        raise ValueError(f"{path} has columns {found}; call that of the {what} {wanted[0]}")
    return column


def _of_rows(path: Path, rows: list[dict[str, Any]], keep: Keep, losses: Losses) -> list[Entry]:
    if not rows:
        raise ValueError(f"{path} has no rows; write one for each picture")
    pictures = _column(path, rows[0], _PATHS, "pictures")
    captions = _column(path, rows[0], _CAPTIONS, "captions")
    names, found = [], []
    for number, row in enumerate(rows, 1):
        name = row[pictures]
        if not isinstance(name, str) or not (path.parent / name).is_file():
            losses.add(f"{path}, row {number}", f"{name!r} does not exist")
            continue
        names.append(name)
        scores = {score: _number(row[score]) for score in keep.scores or {} if score in row}
        fields = json.dumps(scores) if scores else ""
        found.append((cleaned(str(row[captions] or "")), str(path.parent / name), fields))
    return [
        Entry(key, caption, picture, fields=fields)
        for key, (caption, picture, fields) in zip(keys_of(names), found, strict=True)
    ]


def _number(value: Any) -> float | None:
    """A table's cell as a number; None where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


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


def _of_shards(shards: str, keep: Keep, losses: Losses) -> Found:
    found = ShardSet(shards, keep, Reading(tolerate=losses.tolerate, cache_gigabytes=1e6))
    names, entries = [], []
    for shard, rows in enumerate(found.rows):
        path = str(found.sources[shard].local())
        for row in rows.tolist():
            place = Place(shard, row)
            try:
                record, fields = found.record(place), found.fields(place)
                caption = found.caption(place)
            except ValueError as error:  # it was readable when it was indexed
                losses.add(found.named(place), error)
                continue
            names.append(found.key(place) + ".picture")
            entries.append(
                Entry(
                    names[-1],
                    caption,
                    path,
                    record.offset,
                    record.size,
                    fields=json.dumps(fields) if fields else "",
                    crc=record.crc,
                )
            )
    whole = [replace(entry, key=key) for key, entry in zip(keys_of(names), entries, strict=True)]
    return Found(whole, sum(len(index.records) for index in found.indexes) - len(found))
