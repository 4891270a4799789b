"""Where a training begins or continues, and whether starting it again can help."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.runs.attempts import SAME_STEP, Attempts
from ldm.runs.checkpoints import Checkpoint, checkpoints, newest_good, tidy
from ldm.runs.compare import recorded_data
from ldm.runs.folder import RunFolder, make_folder
from ldm.runs.lock import RunLock
from ldm.runs.processes import restarts
from ldm.runs.state import STATE


@contextmanager
def opened(folder: RunFolder) -> Iterator[None]:
    """The run's folder, of which this process is the one writer. A folder that was made here goes
    again where the start is refused before the training has begun."""
    fresh = not folder.path.exists()
    make_folder(folder)
    with RunLock(folder.path):
        try:
            yield
        except (ValueError, OSError):  # refusals; what dies otherwise is to be counted
            if fresh and not (folder.path / STATE).exists():
                shutil.rmtree(folder.path, ignore_errors=True)
            raise


def refuse_other_data(
    config: DictConfig, folder: RunFolder, hashes: Mapping[str, Any]
) -> list[str]:
    """A line to be told where the run goes on with other pictures than it began with; ValueError
    unless `data.allow_change` says that it may."""
    if recorded_data(folder.path) in ({}, hashes):
        return []
    if not config.data.allow_change:
        raise ValueError(
            f"data.train or data.val: other pictures than {folder.path} was trained on; put them "
            "back, set data.allow_change=true to go on with these, or set name=ANOTHER"
        )
    return ["data: other pictures, as data.allow_change says"]


def resume_point(folder: RunFolder, resume: str) -> Checkpoint | None:
    """Where to continue, as `resume` says: auto (the newest good checkpoint, or the start), must
    (there has to be one), never (there must not be one), or the folder of a checkpoint."""
    own = checkpoints(folder.checkpoints)
    if resume == "never" and own:
        raise ValueError(
            f"resume=never, but {own[-1].path} is there; set resume=auto to continue, or "
            "name=ANOTHER to start anew"
        )
    if resume not in ("auto", "never", "must"):
        return _asked_point(folder, Path(resume))
    tidy(folder.checkpoints)
    found = _newest(folder)
    if found is None and resume == "must":
        raise ValueError(
            f"resume=must, but {folder.checkpoints} holds no good checkpoint; set resume=auto to "
            "begin at the start"
        )
    return found


def _asked_point(folder: RunFolder, path: Path) -> Checkpoint | None:
    there = path.resolve()  # `last` is a link
    asked = next((c for c in checkpoints(there.parent) if c.path.name == there.name), None)
    if asked is None:
        raise ValueError(
            f"resume={path}: no checkpoint; set auto, must, never, or a folder such as "
            f"{folder.checkpoints}/step-00001000"
        )
    if damage := asked.damage():
        raise ValueError(f"resume={path}: {damage}; name another checkpoint")
    inside = path.resolve().parent == folder.checkpoints.resolve()
    if restarts() or (checkpoints(folder.checkpoints) and not inside):
        return _newest(folder) or asked  # this run has begun from there, and gone on
    for moved in tidy(folder.checkpoints, after=asked.step):
        print(f"set aside  {moved}")
    return asked


def _newest(folder: RunFolder) -> Checkpoint | None:
    newest = checkpoints(folder.checkpoints)[-1:]
    for found in newest_good(folder.checkpoints):
        if isinstance(found, Checkpoint):
            if newest[0].step != found.step:
                lost = newest[0].step - found.step
                print(f"warning: {lost} steps are done again", file=sys.stderr)
            return found
        print(f"warning: {found}", file=sys.stderr)
    return None


def hopeless(attempts: Attempts, resumed: Checkpoint | None) -> bool:
    """Whether this job has died at the same step too often; else the new start is written down."""
    step = resumed.step if resumed else 0
    if restarts() and attempts.fruitless(step) >= SAME_STEP:
        print(
            f"error: the job ended {SAME_STEP} times at step {step} without getting further; the "
            f"last time: {attempts.last_failure()}; not tried again. Mend it (a longer --time, if "
            "it was stopped while it started), then submit anew",
            file=sys.stderr,
        )
        return True
    attempts.start(step)
    return False
