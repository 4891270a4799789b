"""Runs against each other: settings, metrics, code, data. Nothing heavy is imported."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.runs.folder import RunFolder, flatten
from ldm.runs.table import Row

_NAMES = ("name", "run_root")  # differ by nature


def differing(paths: Sequence[Path]) -> dict[str, list[Any]]:
    """Dotted keys whose values are not equal in all runs, with each run's value; "–" where it has
    no such key."""
    flat = [flatten(RunFolder(path).config()) for path in paths]
    keys = dict.fromkeys(key for one in flat for key in one)
    table = {key: [one.get(key, "–") for one in flat] for key in keys if key not in _NAMES}
    return {key: values for key, values in table.items() if any(v != values[0] for v in values)}


def side_by_side(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Every metric's newest value in each run."""
    names = sorted({name for row in rows for name in row.metrics})
    return {name: [row.metrics.get(name) for row in rows] for name in names}


def refuse_other_code(path: Path, provenance: Mapping[str, Any]) -> None:
    """ValueError when the code is not what the run was trained with."""
    source = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    then, now = provenance.get("commit", ""), git("rev-parse", "HEAD")
    if not then:
        raise ValueError(f"{path}: no commit is recorded; repeat it with --anyway")
    if then != now:
        raise ValueError(
            f"{path} was trained at commit {then[:12]}, this is {now[:12]}; `git checkout {then}`, "
            "or repeat it with --anyway"
        )
    patch = path / "uncommitted.diff"
    before = patch.read_text().strip() if patch.is_file() else ""
    if before != git("diff", "HEAD"):
        raise ValueError(
            f"{path} was trained with other uncommitted changes than there are; apply {patch}, or "
            "repeat it with --anyway"
        )


def recorded_data(path: Path) -> dict[str, Any]:
    """Hashes of the data that a run was trained on, or {}."""
    try:
        facts = json.loads((path / "state.json").read_text()).get("facts", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return dict(facts.get("data", {}))
