"""Checkpoints as folders that are either whole or not there.

`checkpoints/step-00001000/` holds its files and a `manifest.json` with their sizes and hashes,
written last; the folder gets its name by one rename. A half-written one therefore never has the
name of a checkpoint, and one that was damaged later is found out by its manifest.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.runs.shards import read_shards

STATE = "state.ckpt"
SHARDS = "sharded"
MANIFEST = "manifest.json"
BEST = "best.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint folder."""

    path: Path
    step: int

    @property
    def state(self) -> Path:
        """The file of the numbers, and of the tensors unless these are sharded."""
        return self.path / STATE

    @property
    def shards(self) -> Path | None:
        """The folder of the tensors' shards, where the ranks wrote one each."""
        return self.path / SHARDS if (self.path / SHARDS).is_dir() else None

    def numbers(self) -> dict[str, Any]:
        """The stored state without what is sharded: tensors, numbers and strings, never code."""
        return torch.load(self.state, map_location="cpu", weights_only=True)

    def load(self) -> dict[str, Any]:
        """The whole stored state on the CPU, whatever the number of ranks that wrote it."""
        if self.shards is None:
            return self.numbers()
        return {**self.numbers(), **read_shards(self.shards)}

    def damage(self) -> str | None:
        """What is wrong with the folder's files, or None when all are as the manifest says."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
            files = manifest["files"]
        except (OSError, ValueError, KeyError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        for name, expected in files.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != expected["bytes"]:
                return f"{name} is missing or has another size than the manifest says"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has other contents than the manifest says"
        return None

    def bytes(self) -> int:
        """What it takes on the disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None]) -> Checkpoint:
    """Have `write` fill a fresh folder, then give it its name; an existing one stays untouched."""
    path = folder / f"step-{step:08d}"
    if path.exists():
        return Checkpoint(path, step)
    draft = begin(folder, step)
    try:
        write(draft)
        return finish(draft, step)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def begin(folder: Path, step: int) -> Path:
    """A fresh folder to write into; OSError when the disk has no room for another checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = checkpoints(folder)
    needed = int(1.1 * earlier[-1].bytes()) if earlier else 0
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed >> 20} MiB are needed, {free >> 20} MiB are free")
    draft = folder / f".draft-{step:08d}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def finish(draft: Path, step: int) -> Checkpoint:
    """Seal what was written with its manifest, and give it its name."""
    files = {
        str(file.relative_to(draft)): {"bytes": file.stat().st_size, "sha256": _synced(file)}
        for file in sorted(draft.rglob("*"))
        if file.is_file()
    }
    _write_synced(draft / MANIFEST, json.dumps({"step": step, "files": files}, indent=1))
    path = draft.parent / f"step-{step:08d}"
    draft.rename(path)
    _sync_folder(path.parent)
    _point_at("last", path)
    return Checkpoint(path, step)


def tidy(folder: Path, after: int | None = None) -> list[Path]:
    """Remove what killed writes left, and set aside (in `abandoned/`) checkpoints behind step
    `after`, which the training will come to anew. Call it only as the folder's one writer."""
    for draft in folder.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
    moved = []
    for checkpoint in checkpoints(folder) if after is not None else []:
        if checkpoint.step > after:  # type: ignore[operator]
            moved.append(_move(checkpoint, folder / "abandoned"))
    return moved


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All that are named as checkpoints, oldest first; ordered by step, never by file times."""
    found = []
    for path in folder.glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / MANIFEST).exists():
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def run_named(target: Path) -> Path:
    """The run's folder, of itself or of one of its checkpoints (`RUN/checkpoints/step-00001000`,
    or the links `last` and `best` beside it)."""
    path = _followed(target)
    return path.absolute().parents[1] if _NAME.fullmatch(path.name) else target


def checkpoint_named(target: Path) -> Checkpoint | None:
    """The checkpoint that is named itself, None where a run is; ValueError where it is damaged."""
    path = _followed(target)
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    checkpoint = Checkpoint(path, int(match[1]))
    if damage := checkpoint.damage():
        raise ValueError(f"{target}: {damage}; name another checkpoint")
    return checkpoint


def newest_good(folder: Path) -> Iterator[Checkpoint | str]:
    """A warning for each damaged checkpoint, newest first (it is moved to `corrupt/`), then the
    newest that is good, if there is one."""
    for checkpoint in reversed(checkpoints(folder)):
        damage = checkpoint.damage()
        if damage is None:
            yield checkpoint
            return
        moved = _move(checkpoint, folder / "corrupt")
        yield f"checkpoint {checkpoint.path}: {damage}; moved to {moved}"


def prune(folder: Path, keep: int, keep_every: int | None) -> None:
    """Delete all but the newest `keep`, the best, and those whose step `keep_every` divides."""
    best = best_of(folder)
    for checkpoint in checkpoints(folder)[: -keep or None]:
        if best is not None and checkpoint.step == best.step:
            continue
        if keep_every is None or checkpoint.step % keep_every:
            shutil.rmtree(checkpoint.path)


@dataclass(frozen=True)
class Best:
    """The step at which a number was lowest so far."""

    step: int
    metric: str
    value: float


def mark_best(folder: Path, best: Best) -> None:
    """Remember it, and point the link `best` at its checkpoint."""
    draft = folder / f".{BEST}-{os.getpid()}"
    _write_synced(draft, json.dumps(asdict(best)))
    draft.replace(folder / BEST)
    _point_at("best", folder / f"step-{best.step:08d}")


def best_of(folder: Path) -> Best | None:
    """What `mark_best` remembered, while its checkpoint is there."""
    try:
        best = Best(**json.loads((folder / BEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return best if (folder / f"step-{best.step:08d}" / MANIFEST).exists() else None


def _move(checkpoint: Checkpoint, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    moved = folder / f"{checkpoint.path.name}-{os.getpid()}"
    checkpoint.path.rename(moved)
    return moved


def _followed(target: Path) -> Path:
    return target.resolve() if target.name in ("last", "best") else target


def _point_at(name: str, path: Path) -> None:
    draft = path.parent / f".{name}-{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(path.name)
    draft.replace(path.parent / name)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # or the name could reach the disk before the contents
    return _sha256(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
