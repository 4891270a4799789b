"""Files that are whole or not there, and texts whose faults name their file."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A hidden place beside `path` to write a file or a folder in. It takes the name `path` when
    the block ends (a file's place too, never a filled folder's), and is gone when the block
    fails."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Whole or not at all; a file that was there is replaced."""
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """ValueError names the file where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def read_json(path: Path) -> Any:
    """ValueError names the file where it is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON ({error}); mend it, or put another copy there") from None
