"""Curves of runs as pictures."""

from collections.abc import Sequence
from pathlib import Path

from ldm.runs.table import history

SHOWN = 12  # plots on one page


def overlay(paths: Sequence[Path], file: Path) -> None:
    """One plot a metric that two runs share (or that the one run has), a line a run."""
    from matplotlib.figure import Figure

    histories = {path.name: history(path / "metrics.jsonl") for path in paths}
    counts: dict[str, int] = {}
    for found in histories.values():
        for name, (steps, _) in found.items():
            counts[name] = counts.get(name, 0) + (len(steps) > 1)
    names = [name for name, count in sorted(counts.items()) if count >= min(2, len(paths))]
    if not names:
        raise ValueError("the runs share no metric with more than one value; nothing to plot")
    names = names[:SHOWN]
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
