"""What lies in runs' checkpoints: whether two have the same weights, and what nobody misses."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ldm.runs.checkpoints import checkpoints
from ldm.runs.lock import in_use
from ldm.runs.table import Row


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
    if row.state.name == "unknown" and _never_began(row.path):
        yield row.path, "a start that ended before its training began"
        return
    for draft in sorted(folder.glob(".draft-*")):
        yield draft, "a checkpoint that was never finished"
    if (folder / "corrupt").is_dir():
        yield folder / "corrupt", "damaged checkpoints"


def _never_began(run: Path) -> bool:
    """Whether train.py made the folder, nothing was trained in it, and nobody is about to: others
    (`ldm import`, `ldm export`) write folders with a config.yaml too."""
    made_here = (run / "provenance.jsonl").is_file() or (run / "attempts.jsonl").is_file()
    trained = (run / "metrics.jsonl").is_file() or checkpoints(run / "checkpoints")
    return made_here and not trained and not in_use(run)
