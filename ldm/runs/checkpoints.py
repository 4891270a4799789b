"""Checkpoints as folders that are either whole or not there.

`checkpoints/step-00001000/` holds its files and a `manifest.json` with their sizes and hashes,
written last; the folder gets its name by one rename. A half-written one therefore never has the
name of a checkpoint, and one that was damaged later is found out by its manifest.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STATE = "state.ckpt"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint folder."""

    path: Path
    step: int

    @property
    def state(self) -> Path:
        """The file that a trainer resumes from."""
        return self.path / STATE

    def load(self) -> dict[str, Any]:
        """The stored state on the CPU: tensors, numbers and strings only, never code."""
        return torch.load(self.state, map_location="cpu", weights_only=True)

    def damage(self) -> str | None:
        """What is wrong with the folder's files, or None when all are as the manifest says."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        for name, expected in manifest["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != expected["bytes"]:
                return f"{name} is missing or has another size than the manifest says"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has other contents than the manifest says"
        return None


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None]) -> Checkpoint:
    """Have `write` fill a fresh folder, then give it its name; an existing one stays untouched."""
    path = folder / f"step-{step:08d}"
    if path.exists():
        return Checkpoint(path, step)
    draft = folder / f".draft-{step:08d}-{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        write(draft)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(draft.iterdir())
        }
        _write_synced(draft / MANIFEST, json.dumps({"step": step, "files": files}, indent=1))
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _point_last_at(path)
    return Checkpoint(path, step)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All that are named as checkpoints, oldest first; ordered by step, never by file times."""
    found = []
    for path in folder.glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / MANIFEST).exists():
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_good(folder: Path) -> Iterator[Checkpoint | str]:
    """A warning for each damaged checkpoint, newest first (it is moved to `corrupt/`), then the
    newest that is good, if there is one."""
    for checkpoint in reversed(checkpoints(folder)):
        damage = checkpoint.damage()
        if damage is None:
            yield checkpoint
            return
        (folder / "corrupt").mkdir(exist_ok=True)
        moved = folder / "corrupt" / f"{checkpoint.path.name}-{os.getpid()}"
        checkpoint.path.rename(moved)
        yield f"checkpoint {checkpoint.path}: {damage}; moved to {moved}"


def prune(folder: Path, keep: int, keep_every: int | None) -> None:
    """Delete all but the newest `keep` and those whose step `keep_every` divides."""
    for checkpoint in checkpoints(folder)[: -keep or None]:
        if keep_every is None or checkpoint.step % keep_every:
            shutil.rmtree(checkpoint.path)


def _point_last_at(path: Path) -> None:
    draft = path.parent / f".last-{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(path.name)
    draft.replace(path.parent / "last")


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
