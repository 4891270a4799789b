"""Shards out of pictures: in parallel, resumable, each file complete or absent."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import webdataset
from PIL import Image as Picture

from ldm.data.decode import colour_of, open_header, to_rgb, upright
from ldm.data.entries import Entry
from ldm.data.index import PICTURES, ShardIndex, build_index, load_index
from ldm.data.losses import Losses
from ldm.data.pool import Run, pool
from ldm.data.random import permutation

Format = Literal["webp", "png", "jpg"]
MANIFEST = "manifest.json"
_STAGE = ".partial"


@dataclass(frozen=True)
class Encoding:
    """`size` is the short side (never enlarged; None leaves pictures as they are), `quality` 100
    is lossless for WebP. Without size and format the bytes are copied."""

    size: int | None = None
    background: str = "white"
    format: Format | None = None
    quality: int = 95
    max_pixels: int = 64_000_000

    def __call__(self, raw: bytes) -> tuple[bytes, str]:
        """Encoded bytes and their suffix. Raises whatever the codec does for a broken picture."""
        picture = open_header(raw, self.max_pixels)
        if self.size is None and self.format is None:
            name = (picture.format or "").lower()
            picture.load()
            suffix = {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(name, name)
            if suffix not in PICTURES:
                raise ValueError(f"shards hold no {name.upper()} as it is; set --size or --format")
            return raw, suffix
        picture = to_rgb(upright(picture), colour_of(self.background))
        if self.size is not None and min(picture.size) > self.size:
            short = min(picture.size)
            width, height = (max(1, round(side * self.size / short)) for side in picture.size)
            picture = picture.resize((width, height), Picture.Resampling.LANCZOS)
        return self._encoded(picture)

    def _encoded(self, picture: Picture.Image) -> tuple[bytes, str]:
        file = io.BytesIO()
        suffix = self.format or "webp"
        if suffix == "webp":
            lossless = self.quality == 100
            picture.save(file, "WEBP", lossless=lossless, quality=self.quality, method=6)
        elif suffix == "png":
            picture.save(file, "PNG", optimize=True)
        else:
            picture.save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue(), suffix


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    name: str
    entries: Sequence[Entry]
    recipe: str


def make_shards(
    splits: Mapping[str, Sequence[Entry]],
    destination: Path,
    encoding: Encoding,
    *,
    shard_size: int,
    jobs: int,
    command: str,
    progress: Callable[[int, int], None],
    losses: Losses,
) -> dict[str, object]:
    """Writes `destination/<split>-00000.tar` … with indexes and manifest.json, and returns that.

    Started again after it was stopped, it writes only the shards that are missing. Pictures that
    cannot be decoded go to `losses`; where those are too many, ValueError names them when all were
    looked at, and the shards wait for the next start.
    """
    plan = [
        job
        for name, entries in splits.items()
        for job in _jobs(name, entries, encoding, shard_size)
    ]
    _refuse_other_contents(destination, plan)
    stage = destination / _STAGE
    stage.mkdir(parents=True, exist_ok=True)
    total = sum(len(job.entries) for job in plan)
    seen = losses.count + total
    done = 0
    with pool(jobs, chunk=16) as run:
        for job in plan:
            if not any(
                _found(folder / job.name, job, encoding, losses) for folder in (destination, stage)
            ):
                _write(stage / job.name, job, encoding, run, losses)
            done += len(job.entries)
            progress(done, total)
    losses.refuse(seen, f"; what was written waits in {stage} for the same command")
    return _publish(stage, destination, plan, command, encoding)


def _jobs(split: str, entries: Sequence[Entry], encoding: Encoding, size: int) -> Iterator[_Job]:
    """The split's shards: samples shuffled once, so that neighbours differ, evenly spread."""
    order = permutation(len(entries), length=len(entries)).tolist()
    count = -(-len(entries) // size)
    for number in range(count):
        chosen = order[len(order) * number // count : len(order) * (number + 1) // count]
        part = [entries[i] for i in chosen]
        digest = hashlib.sha256(json.dumps(asdict(encoding)).encode())
        for entry in part:
            digest.update(json.dumps(entry.identity).encode())
        yield _Job(f"{split}-{number:05d}.tar", part, digest.hexdigest())


def _refuse_other_contents(destination: Path, plan: list[_Job]) -> None:
    if destination.exists() and not destination.is_dir():
        raise ValueError(f"{destination} is a file; name a folder for the shards")
    names = {job.name for job in plan}
    if destination.is_dir():
        for path in sorted(destination.glob("*.tar")):
            job = next((job for job in plan if job.name == path.name), None)
            if path.name not in names or (job and not _finished(path, job)):
                raise ValueError(
                    f"{destination} holds other shards ({path.name}); choose another folder or "
                    "remove them"
                )


def _finished(path: Path, job: _Job) -> bool:
    where = path.with_name(path.name + ".index")
    if not (path.is_file() and where.is_file()):
        return False
    header = load_index(where).header
    return header.recipe == job.recipe and header.bytes == path.stat().st_size


def _found(path: Path, job: _Job, encoding: Encoding, losses: Losses) -> bool:
    """Whether the shard is there already. What it lacks is tried again, and counted."""
    if not _finished(path, job):
        return False
    index = load_index(path.with_name(path.name + ".index"))
    if index.header.samples == len(job.entries):
        return True
    there = {index.key(row) for row in range(index.header.samples)}
    lacking = [entry for entry in job.entries if entry.key not in there]
    answers = [_encode(encoding, entry) for entry in lacking]
    if not all(isinstance(answer, str) for answer in answers):
        return False  # mended since
    for entry, reason in zip(lacking, answers, strict=True):
        losses.add(entry.place, reason)
    return True


_Answer = tuple[bytes, str] | str  # encoded bytes and their suffix, or why there are none


def _encode(encoding: Encoding, entry: Entry) -> _Answer:
    if entry.fault:
        return entry.fault
    try:
        return encoding(entry.read())
    except Exception as error:  # what a broken file makes a codec raise is not documented
        if isinstance(error, OSError) and error.strerror:
            return f"cannot be read ({error.strerror})"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return f"cannot be decoded ({kind}{error})"


def _write(path: Path, job: _Job, encoding: Encoding, run: Run, losses: Losses) -> None:
    partial_tar = path.with_name(path.name + ".partial")
    try:
        _fill(partial_tar, job, encoding, run, losses)
        index = build_index(partial_tar, recipe=job.recipe)
        if index.header.left_out:
            raise ValueError(f"{path.name} would be unreadable: {index.header.examples[0]}")
        index.write(path.with_name(path.name + ".index"))
        partial_tar.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path.parent)  # a full disk says no name
        raise
    finally:
        partial_tar.unlink(missing_ok=True)


def _fill(path: Path, job: _Job, encoding: Encoding, run: Run, losses: Losses) -> None:
    with (
        path.open("wb") as file,  # which is closed on a full disk too
        webdataset.TarWriter(
            file, encoder=False, mtime=0, user="ldm", group="ldm", mode=0o644
        ) as tar,
    ):
        for entry, answer in zip(
            job.entries, run(partial(_encode, encoding), job.entries), strict=True
        ):
            if isinstance(answer, str):
                losses.add(entry.place, answer)
                continue
            raw, suffix = answer
            sample = {"__key__": entry.key, suffix: raw, "txt": entry.caption.encode()}
            tar.write(sample | ({"json": entry.fields.encode()} if entry.fields else {}))


def _publish(
    stage: Path, destination: Path, plan: list[_Job], command: str, encoding: Encoding
) -> dict[str, object]:
    for job in plan:
        for name in (job.name + ".index", job.name):
            if (stage / name).is_file():
                (stage / name).replace(destination / name)
    shutil.rmtree(stage)
    indexes = {job.name: load_index(destination / f"{job.name}.index") for job in plan}
    manifest: dict[str, object] = {
        "command": command,
        "encoding": asdict(encoding),
        "content_hash": _content_hash(indexes),
        "samples": {
            split: sum(
                index.header.samples
                for name, index in indexes.items()
                if name.rpartition("-")[0] == split
            )
            for split in sorted({name.rpartition("-")[0] for name in indexes})
        },
        "shards": {
            name: {
                "samples": index.header.samples,
                "bytes": index.header.bytes,
                "sha256": index.header.sha256,
            }
            for name, index in indexes.items()
        },
    }
    partial_file = destination / f"{MANIFEST}.partial"
    partial_file.write_text(json.dumps(manifest, indent=1) + "\n")
    partial_file.replace(destination / MANIFEST)
    return manifest


def _content_hash(indexes: dict[str, ShardIndex]) -> str:
    text = "".join(f"{name} {index.header.sha256}\n" for name, index in sorted(indexes.items()))
    return hashlib.sha256(text.encode()).hexdigest()
