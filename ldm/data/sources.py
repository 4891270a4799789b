"""Where shards come from: names, braces, globs, other machines, and what ldm ships."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import fsspec

from ldm.data.cache import Cache, last_line
from ldm.data.errors import DataError
from ldm.data.reading import Reading

ASSETS = Path(__file__).parents[1] / "assets"
_MAGIC = "*?["
_REMOTE_INDEX = ".index"


def expand(shards: str | Sequence[str], reading: Reading) -> list["Source"]:
    """All shards, in order: braces and globs expanded, `asset:` resolved to what ldm ships.

    Raises FileNotFoundError when a pattern matches nothing or a local shard is missing.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            found.append(_allowed_pipe(pattern, reading))
            continue
        for name in braceexpand.braceexpand(pattern):
            found += _matches(name)
    if not found:
        raise FileNotFoundError("shards is empty; name at least one tar file")
    name, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise ValueError(f"shards names {name} {count} times; name every shard once")
    return [Source(name, reading) for name in found]


def is_remote(name: str) -> bool:
    """Whether a shard has to be fetched before it can be read."""
    return "://" in name or name.startswith("pipe:")


def _allowed_pipe(name: str, reading: Reading) -> str:
    if not reading.pipe:
        raise ValueError(
            f"{name} would run a shell command; set data.reading.pipe=true to allow it"
        )
    return name


def _matches(name: str) -> list[str]:
    if name.startswith("asset:"):
        name = str(ASSETS / name.removeprefix("asset:"))
    if is_remote(name):
        return _remote_matches(name) if any(sign in name for sign in "*[") else [name]
    name = os.path.expanduser(name)
    if any(sign in name for sign in _MAGIC):
        found = sorted(glob.glob(name, recursive=True)) or _in_odd_folder(name)
        if not found:
            raise FileNotFoundError(f"{name} matches no file; check the path of the shards")
        return found
    if not Path(name).is_file():
        raise FileNotFoundError(f"{name}: no such shard; check its path")
    return [name]


def _in_odd_folder(name: str) -> list[str]:
    """The files of a folder whose own name holds signs of a pattern, as in `birds [1]/*.tar`."""
    folder, _, base = name.rpartition("/")
    return sorted(glob.glob(f"{glob.escape(folder)}/{base}")) if folder else []


def _remote_matches(name: str) -> list[str]:
    try:
        system, path = fsspec.url_to_fs(name, skip_instance_cache=True)
        found = sorted(str(system.unstrip_protocol(match)) for match in system.glob(path))
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be listed ({last_line(error)}); check the address of the shards"
        ) from None
    if not found:
        raise FileNotFoundError(f"{name} matches nothing; check the address of the shards")
    return found


@dataclass(frozen=True)
class Source:
    """One shard, on this machine or another."""

    name: str
    reading: Reading

    @property
    def base(self) -> str:
        """The shard's own name, without folders or machine."""
        if self.name.startswith("pipe:"):
            return hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return self.name.rpartition("/")[2]

    def local(self) -> Path:
        """The shard's file, fetched if it is elsewhere. Raises OSError or DataError."""
        if not is_remote(self.name):
            return Path(self.name)
        return Cache(self.reading).fetch(self.name)

    def is_here(self) -> bool:
        """Whether `local` has nothing to fetch."""
        return not is_remote(self.name) or Cache(self.reading).path(self.name).is_file()

    def fetched_index(self) -> Path | None:
        """The index that lies beside a remote shard; None where there is none."""
        if not is_remote(self.name) or self.name.startswith("pipe:"):
            return None
        try:
            return Cache(self.reading).fetch(self.name + _REMOTE_INDEX, tries=1)
        except DataError:
            return None
