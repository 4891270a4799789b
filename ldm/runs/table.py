"""The runs below a folder, one row each, read from a few small files without opening any run.

Nothing is locked and nothing is written: rows are what the files say at this moment, and a file
that is half written or gone counts as absent.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.runs.state import STATE, State, read_state

TAIL = 16_384  # bytes of metrics.jsonl that hold the newest values
HEAD = 16_384  # characters of config.yaml that hold its plain top-level keys


@dataclass(frozen=True)
class Row:
    """One run. `metrics` are the newest value of each name; `changed` when anything was last
    recorded, seconds since 1970."""

    path: Path
    name: str
    stage: str
    state: State
    step: int
    metrics: dict[str, float]
    changed: float

    @property
    def steps(self) -> int | None:
        """How many the run is meant to have."""
        return self.state.facts.get("max_steps")


def rows(root: Path) -> Iterator[Row]:
    """Every run folder directly below `root`, in no order; FileNotFoundError where there is no such
    folder."""
    try:
        found = list(os.scandir(root))
    except OSError:
        raise FileNotFoundError(
            f"{root}: no such folder of runs; name one that holds runs"
        ) from None
    for entry in found:
        if not entry.name.startswith(".") and entry.is_dir():
            row = read_row(Path(entry.path))
            if row is not None:
                yield row


def read_row(path: Path) -> Row | None:
    """None where the folder is no run."""
    head = _head(path / "config.yaml")
    if head is None and not (path / STATE).is_file():
        return None
    state = read_state(path)
    stage = state.facts.get("stage") or _plain("stage_name", head or "") or "?"
    metrics, step = newest_metrics(path / "metrics.jsonl")
    changed = max(_time(path / "metrics.jsonl"), _time(path / STATE), _time(path / "config.yaml"))
    return Row(path, path.name, str(stage), state, step, metrics, changed)


def newest_metrics(path: Path) -> tuple[dict[str, float], int]:
    """The newest value of each name within the file's last bytes, and the highest step there."""
    values: dict[str, float] = {}
    highest = 0
    for record in reversed(list(_records(path, TAIL))):
        highest = max(highest, int(record.get("step") or 0))
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, float(value))
    return values, highest


def history(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each name over the whole file; where a step was trained twice, as after
    an interruption, the later record counts."""
    found: dict[str, dict[int, float]] = {}
    for record in _records(path, None):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, {})[int(record.get("step") or 0)] = float(value)
    return {
        name: (sorted(points), [points[step] for step in sorted(points)])
        for name, points in sorted(found.items())
    }


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The metrics' columns: the named ones, or those that most runs have of the usual ones."""
    if names:
        return list(names)
    usual = (
        "sample/fid",
        "sample/fd_clip",
        "sample/frechet_distance",  # what fd_clip was called once
        "sample/clip_score",
        "reconstruction/fd_clip",
        "val/psnr",
        "val/loss",
        "train/loss",
        "time/images_per_second",
    )
    return [name for name in usual if any(name in row.metrics for row in rows)]


def _records(path: Path, tail: int | None) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            if tail is not None:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - tail))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the first line of a tail, or one that is being written
            continue
        if isinstance(record, dict):
            yield record


def _head(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(HEAD)
    except OSError:
        return None


def _plain(key: str, text: str) -> str:
    match = re.search(rf"^{key}: (\S+)$", text, re.M)
    return match[1] if match else ""


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
