"""Runs against each other: settings, metrics, code, weights; and what a run leaves lying about."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.runs.checkpoints import checkpoints
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


def same_weights(old: Path, new: Path) -> str:
    """`equal: …` where the newest checkpoint of both has the same tensors, bit for bit."""
    first, second = (checkpoints(path / "checkpoints") for path in (old, new))
    common = sorted({c.step for c in first} & {c.step for c in second})
    if not common:
        return "not compared: no checkpoint of the same step"
    step = common[-1]
    before, after = (
        next(c for c in found if c.step == step).load()["state_dict"] for found in (first, second)
    )
    if before.keys() != after.keys():
        return f"different: other tensors at step {step}"
    for name, tensor in before.items():
        if not torch.equal(tensor, after[name]):
            return f"different: {name} at step {step}"
    return f"equal: {len(before)} tensors at step {step}, bit for bit"


def leftovers(row: Row) -> Iterator[tuple[Path, str]]:
    """Folders that nobody misses, with the reason."""
    if row.state.name in ("running", "stale"):
        return
    folder = row.path / "checkpoints"
    if row.state.name in ("failed", "interrupted") and not checkpoints(folder):
        yield row.path, f"{row.state.name} before its first checkpoint"
        return
    for draft in sorted(folder.glob(".draft-*")):
        yield draft, "a checkpoint that was never finished"
    if (folder / "corrupt").is_dir():
        yield folder / "corrupt", "damaged checkpoints"


def recorded_data(path: Path) -> dict[str, Any]:
    """Hashes of the data that a run was trained on, or {}."""
    try:
        facts = json.loads((path / "state.json").read_text()).get("facts", {})
    except (OSError, ValueError):
        return {}
    return dict(facts.get("data", {}))
