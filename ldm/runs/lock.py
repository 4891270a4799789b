"""One training a run folder, also when nodes die: a file made exclusively, with a heartbeat.

No flock: network file systems do not all keep it.
"""

import json
import os
import platform
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ldm.runs.processes import job, restarts

BEAT = 30.0  # seconds between heartbeats
DEAD = 600.0  # seconds without one after which a holder on another host is given up


class RunLock:
    """A context in which this process is the folder's only writer. ValueError names the holder.

    A lock is taken over from an earlier start of the same Slurm job, from a process of this host
    that is gone, and from one whose heartbeat stopped `dead` seconds ago.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, dead: float = DEAD) -> None:
        self.path = folder / "lock"
        self.beat, self.dead = beat, dead
        self._done = threading.Event()
        self._mine = ""

    def __enter__(self) -> "RunLock":
        self._mine = json.dumps(
            {
                "host": platform.node(),
                "pid": os.getpid(),
                "job": job(),
                "restarts": restarts(),
                "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
        )
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            except FileExistsError:
                self._take_over()
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(self._mine)
            threading.Thread(target=self._keep_beating, name="lock", daemon=True).start()
            return self
        raise ValueError(f"{self.path}: another process took the lock just now; try again")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._read() == self._mine:
            self.path.unlink(missing_ok=True)

    def _take_over(self) -> None:
        text = self._read()
        try:
            holder = json.loads(text)
            age = time.time() - self.path.stat().st_mtime
        except (ValueError, FileNotFoundError):  # just being written, or just released
            time.sleep(0.5)
            return
        if not self._stale(holder, age):
            raise ValueError(
                f"run folder {self.path.parent} is in use by process {holder['pid']} on "
                f"{holder['host']}{' (job ' + holder['job'] + ')' if holder['job'] else ''} since "
                f"{holder['since']}, last heard of {age:.0f} s ago; wait for it, set name=ANOTHER, "
                f"or, if it is gone for sure, rm {self.path}"
            )
        stale = self.path.with_name(f".lock-stale-{os.getpid()}")
        self.path.rename(stale)
        stale.unlink()

    def _stale(self, holder: dict[str, Any], age: float) -> bool:
        if holder["job"] and holder["job"] == job() and holder["restarts"] < restarts():
            return True
        if holder["host"] == platform.node():
            return not _alive(holder["pid"])
        return age > self.dead

    def _keep_beating(self) -> None:
        while not self._done.wait(self.beat):
            try:
                os.utime(self.path)
            except OSError:  # the disk is away for a moment, or the lock was broken by hand
                continue

    def _read(self) -> str:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return ""


def in_use(folder: Path) -> bool:
    """Whether a training holds the folder, or did until it fell silent a moment ago."""
    try:
        return time.time() - (folder / "lock").stat().st_mtime < DEAD
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a process that has ended, and whose parent has not asked, has a number still
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
