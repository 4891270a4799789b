"""What has become of a run, told truthfully: by itself while it lives, by its silence after.

`state.json` is written when a training begins and when it ends, each time by one rename; while it
runs, a thread touches `heartbeat` twice a minute. A run that says `running` and has no pulse is
`interrupted` when its process is known to be gone, else `stale`.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.files import write_text

STATES = ("running", "finished", "interrupted", "failed", "stale", "unknown")
PULSE = 30.0  # seconds between beats
SILENCE = 150.0  # without a beat for so long, a run is not running
STATE, HEARTBEAT = "state.json", "heartbeat"


@dataclass(frozen=True)
class State:
    """`error` is the last line of what ended a failed run; `began`, `ended` seconds since 1970;
    `facts` what the run recorded when it began (stage, steps, data hashes)."""

    name: str
    error: str
    began: float | None
    ended: float | None
    facts: Mapping[str, Any]


@contextmanager
def recorded(
    folder: Path, facts: Mapping[str, Any], *, writes: bool = True
) -> Iterator[dict[str, str]]:
    """Record the block as this folder's run: running, then finished, failed with its error's last
    line, or interrupted (a signal, or an exit with a code). Only one rank may have `writes`. A
    block that ends without an exception may say otherwise in the record that it is given."""
    end = {"state": "finished", "error": ""}
    if not writes:
        yield end
        return
    record = {
        "state": "running",
        "pid": os.getpid(),
        "host": platform.node(),
        "began": time.time(),
        "facts": dict(facts),
    }
    _write(folder, record)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder / HEARTBEAT, stop), daemon=True)
    beat.start()
    try:
        yield end
    except Exception as error:
        lines = str(error).strip().splitlines()
        last = f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
        end = {"state": "failed", "error": last}
        raise
    except BaseException as error:  # KeyboardInterrupt, SystemExit
        code = error.code if isinstance(error, SystemExit) else None
        done = isinstance(error, SystemExit) and not code
        end = {"state": "finished" if done else "interrupted", "error": ""}
        raise
    finally:
        stop.set()
        beat.join()
        _write(folder, {**record, **end, "ended": time.time()})


def read_state(folder: Path, now: float | None = None) -> State:
    """A damaged or missing record is `unknown`; never raises."""
    try:
        record = json.loads((folder / STATE).read_text(encoding="utf-8"))
        began, ended = float(record["began"]), record.get("ended")
        name, error = str(record["state"]), str(record.get("error", ""))
        facts = dict(record.get("facts", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return State("unknown", "", None, None, {})
    if name == "running":
        name = _alive(folder, record, began, time.time() if now is None else now)
    return State(name if name in STATES else "unknown", error, began, ended, facts)


def _alive(folder: Path, record: Mapping[str, Any], began: float, now: float) -> str:
    if record.get("host") == platform.node() and not process_is_there(record.get("pid")):
        return "interrupted"  # killed, before it could say so
    try:
        beat = (folder / HEARTBEAT).stat().st_mtime
    except OSError:
        beat = began
    return "running" if now - beat < SILENCE else "stale"


def process_is_there(pid: Any) -> bool:
    """On this machine; what is no number of a process is none."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _beat(path: Path, stop: threading.Event) -> None:
    while True:
        with suppress(OSError):  # a full or vanished disk is the training's to report
            path.touch()
        if stop.wait(PULSE):
            return


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / STATE, json.dumps(record) + "\n")
