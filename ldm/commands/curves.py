"""Curves of runs as pictures."""

from collections.abc import Sequence
from pathlib import Path

from ldm.runs.table import history

Curves = dict[str, tuple[list[int], list[float]]]

SHOWN = 12  # plots on one page
FIRST = ("sample", "reconstruction", "val", "train", "grad")  # what a run is judged by


def without_repeats(curves: Curves) -> Curves:
    """Without `train/loss_max` where it is `train/loss` all along, as in one process."""
    return {
        name: curve
        for name, curve in curves.items()
        if not any(name.startswith(f"{other}_") and curve == curves[other] for other in curves)
    }


def overlay(paths: Sequence[Path], file: Path) -> None:
    """One plot a metric that two runs share (or that the one run has), a line a run: the SHOWN
    that say most."""
    from matplotlib.figure import Figure

    histories = {path.name: without_repeats(history(path / "metrics.jsonl")) for path in paths}
    names = shown(list(histories.values()))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, number)
        for run, found in histories.items():
            if name in found:
                axes.plot(*found[name], label=run, linewidth=1.2)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend()
    figure.savefig(file, dpi=110)


def shown(histories: Sequence[Curves]) -> list[str]:
    """The SHOWN metrics that say most, of those that two of the runs share (or that the one has);
    ValueError where there is none."""
    counts: dict[str, int] = {}
    for found in histories:
        for name, (steps, _) in found.items():
            counts[name] = counts.get(name, 0) + (len(steps) > 1)
    names = [name for name, count in counts.items() if count >= min(2, len(histories))]
    if not names:
        raise ValueError("the runs share no metric with more than one value; nothing to plot")
    return sorted(names, key=_place)[:SHOWN]


def _place(name: str) -> tuple[int, str]:
    group = name.partition("/")[0]
    return (FIRST.index(group) if group in FIRST else len(FIRST), name)
