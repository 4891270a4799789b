"""A run's folder: one name, the same on every rank and after every restart."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ldm.files import read_text, write_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_SECRET = re.compile(r"(^|_)(token|secret|password|api_?key)$", re.IGNORECASE)

_JOB = frozenset(
    f"SLURM_{key}"
    for key in ("JOB_ID", "JOB_NAME", "JOB_NODELIST", "NTASKS", "RESTART_COUNT", "ARRAY_TASK_ID")
)

# Keys that may differ when a run is continued: they do not change what is learned.
HARMLESS = (
    "run_root",
    "resume",
    "log_every",
    "checkpoint",
    "workers",
    "accumulate",
    "blocks",
    "watchdog",
    "data.allow_change",
    "data.keep",  # what it leaves out is told by the pictures' hash
    "data.reading",
    "data.train.keep",
    "data.train.reading",
    "data.train.data.keep",
    "data.train.data.reading",
    "data.val.keep",
    "data.val.reading",
    "logger",
    "trainer._target_",
    "trainer.strategy",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.num_nodes",
    "trainer.profiler",
)
# Keys that change the training from the resumed step on, and are told of.
APPLIED = (
    "trainer.max_steps",
    "trainer.val_check_interval",
    "trainer.gradient_clip_val",
    "module.optimizer.lr",
    "module.lr_schedule",
    "module.on_nonfinite",
    "spikes",
    "evaluation",
    # Where the pictures lie; that they are the same ones is told by their hash.
    "data.folder",
    "data.train.shards",
    "data.train.data.shards",
    "data.val.shards",
    "data.reading.window",  # another order
)


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folders of checkpoints, by step, and the link `last`."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Grids drawn during the training."""
        return self.path / "samples"

    def config(self) -> dict[str, Any]:
        """The saved configuration; FileNotFoundError when the folder holds no run."""
        if not self.config_file.is_file():
            raise FileNotFoundError(
                f"{self.path}: not a run folder (no config.yaml); name a folder that train.py wrote"
            )
        try:
            return yaml.safe_load(read_text(self.config_file))
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"{self.config_file}: damaged ({said}); put a copy of it back, or remove the run"
            ) from None

    def starts(self) -> list[dict[str, Any]]:
        """Where each start of the run came from, oldest first; a line that is being written, or
        was left half, is left out."""
        try:
            lines = (self.path / "provenance.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found


def run_folder(root: str, name: str) -> RunFolder:
    """The folder of a name; names that would leave the root are refused."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: a run's name is 1-80 letters, digits, '.', '_' or '-', and does not "
            "begin with a sign; set name=SOMETHING"
        )
    return RunFolder(Path(root) / name)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ: key -> (old, new); a missing one counts as None."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {
        key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def matters(key: str) -> bool:
    """Whether a difference in this key makes another experiment of a run."""
    return not _under(key, HARMLESS + APPLIED)


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def make_folder(folder: RunFolder) -> None:
    """ValueError when it cannot be written."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder.path / ".writable").touch()
        (folder.path / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"run folder {folder.path} cannot be written ({error.strerror}); set run_root=DIR"
        ) from None


def refuse_other_settings(folder: RunFolder, config: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the run's, if it is there, and would be applied, a line each.
    ValueError where others differ too: that is another experiment."""
    if not folder.config_file.exists():
        return []
    different = differences(folder.config(), config)
    changed = [f"{k}: {a!r} -> {b!r}" for k, (a, b) in different.items() if matters(k)]
    if changed:
        raise ValueError(
            f"run folder {folder.path} holds another configuration ({', '.join(changed[:5])}); "
            "set name=ANOTHER for a new run, or take these settings back to continue it"
        )
    return [f"{k}: {a!r} -> {b!r}" for k, (a, b) in different.items() if _under(k, APPLIED)]


def open_run(folder: RunFolder, config: Mapping[str, Any], argv: list[str]) -> list[str]:
    """Create the folder, or join it when it holds the same experiment, and record where the run
    comes from. Returns the settings that differ and are applied from now on, a line each.
    ValueError when it holds another experiment or cannot be written."""
    make_folder(folder)
    notices = refuse_other_settings(folder, config)
    masked = {
        key: "***" if value and _SECRET.search(key) else value for key, value in config.items()
    }
    write_text(folder.config_file, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True))
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": argv,
        "cwd": str(Path.cwd()),
        **_git(),
        "host": platform.node(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in ("torch", "lightning", "hydra-core")},
        "slurm": {key: value for key, value in os.environ.items() if key in _JOB},
    }
    diff = record.pop("diff")
    with (folder.path / "provenance.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    if diff:
        write_text(folder.path / "uncommitted.diff", diff)
    return notices


def _git() -> dict[str, Any]:
    source = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return {"commit": git("rev-parse", "HEAD"), "diff": git("diff", "HEAD")}
    except FileNotFoundError:  # no git on this machine
        return {"commit": "", "diff": ""}
