"""Copies of remote shards on this machine: bounded, atomic, shared by its processes."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from ldm.data.errors import DataError
from ldm.data.reading import Reading

_RECENT = 60.0  # seconds


def folder_of(reading: Reading) -> Path:
    """The cache's folder."""
    if reading.cache is not None:
        return Path(reading.cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ldm"


def last_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


class Cache:
    """Files named after the hash of their address. The least recently used go first.

    A file that is open stays readable when it is removed, so a run never loses what it reads.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.folder = folder_of(reading) / "shards"
        self.limit = int(reading.cache_gigabytes * 1e9)

    def path(self, address: str) -> Path:
        """Where the copy is, or will be."""
        return self.folder / hashlib.sha256(address.encode()).hexdigest()[:32]

    def fetch(self, address: str, tries: int | None = None) -> Path:
        """The local copy, fetched once by all processes together.

        Raises DataError after `reading.retries` further tries with growing pauses.
        """
        path = self.path(address)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(path.name):
            if not path.is_file():
                self._fetch(address, path, tries or self.reading.retries + 1)
                self._make_room(path)
            os.utime(path)
            return path

    def _fetch(self, address: str, path: Path, tries: int) -> None:
        partial = path.with_name(path.name + ".partial")
        reason = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            try:
                _copy(address, partial, self.reading.timeout)
                partial.replace(path)
                return
            except Exception as error:  # every kind of remote file system raises its own kinds
                reason = f"{type(error).__name__}: {last_line(error)}"
                partial.unlink(missing_ok=True)
        raise DataError(
            f"{address} cannot be fetched after {tries} tries ({reason}); check the address, "
            "the network and your credentials, then start again"
        )

    def _make_room(self, newest: Path) -> None:
        """Removes what was used longest ago; what was used in the last minute stays, since
        another process may be about to open it."""
        recent = (time.time() - _RECENT) * 1e9
        files = []
        for path in self.folder.iterdir():
            if path.suffix not in (".lock", ".partial") and path != newest:
                with suppress(FileNotFoundError):  # another process removed it
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = newest.stat().st_size + sum(size for _, size, _ in files)
        for used, size, path in sorted(files):
            if total <= self.limit or used > recent:
                return
            path.unlink(missing_ok=True)
            total -= size

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process a file. Where a network drive ignores the lock, the file is fetched twice."""
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _copy(address: str, partial: Path, timeout: float) -> None:
    if address.startswith("pipe:"):
        with partial.open("wb") as file:
            command = address.removeprefix("pipe:")
            # the user allowed this shell command with reading.pipe
            subprocess.run(command, shell=True, stdout=file, check=True, timeout=timeout)
        return
    system, path = fsspec.url_to_fs(address, skip_instance_cache=True)  # no sockets across a fork
    with system.open(path, "rb") as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
