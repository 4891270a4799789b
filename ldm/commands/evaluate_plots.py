"""The two plots of a sweep: what is traded for what, and what steps and seconds buy."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

Row = dict[str, Any]
AXES = ("sampler", "steps", "guidance")


def pareto(rows: Sequence[Row], path: Path) -> bool:
    """Fréchet distance against CLIP score, the cells that no other beats in both joined; False
    where the rows have no such two numbers."""
    distance = _distance(rows)
    rows = [row for row in rows if _numbers(row, distance, "clip_score")]
    if not rows:
        return False
    swept = _swept(rows)
    label = "guidance" if "guidance" in swept or not swept else swept[-1]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    points = [(row["values"]["clip_score"], row["values"][distance]) for row in rows]
    best = sorted(p for p in points if not any(_beats(q, p) for q in points))
    axes.step(*zip(*best, strict=True), where="pre", color="0.8", linewidth=5, zorder=0)
    for name, line in _lines(rows, [key for key in swept if key != label], label):
        x, y = _columns(line, "clip_score"), _columns(line, str(distance))
        axes.plot(x, y, "o-", label=name, linewidth=1.2, markersize=5)
        for row, a, b in zip(line, x, y, strict=True):
            axes.annotate(
                _short(row[label]), (a, b), xytext=(4, 4), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel(f"CLIP score, more is better\n{_named(rows, 'clip_score')}", fontsize=9)
    axes.set_ylabel(f"Fréchet distance, less is better\n{_named(rows, distance)}", fontsize=9)
    axes.set_title(
        f"{rows[0]['pictures']} pictures each; numbers are {label}; grey: nothing beats these in "
        "both",
        fontsize=9,
    )
    _finish(figure, axes, path)
    return True


def quality(rows: Sequence[Row], path: Path) -> bool:
    """Fréchet distance and CLIP score against steps (network passes, where rows tell them) and
    against seconds, a line a sampler and guidance; False where the rows have none of the two."""
    distance = _distance(rows)
    shown = [name for name in (distance, "clip_score") if name and _numbers(rows[0], name)]
    if not shown:
        return False
    rows = [row for row in rows if _numbers(row, *shown)]
    titles = {distance: "Fréchet distance, less is better", "clip_score": "CLIP score"}
    timed = all(isinstance(row["seconds"], float) for row in rows)
    walk = "passes" if all("passes" in row for row in rows) else "steps"
    along = [(walk, walk), ("seconds", "seconds a picture")][: 1 + timed]
    figure = Figure(figsize=(4.6 * len(along), 3.4 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(along), squeeze=False)
    keys = [key for key in _swept(rows) if key != "steps"]
    for name, line in _lines(rows, keys, "steps"):
        for metric, across in zip(shown, grid, strict=True):
            for (key, unit), axes in zip(along, across, strict=True):
                ordered = sorted(line, key=lambda row, key=key: row[key])  # type: ignore[misc]
                x = [row[key] for row in ordered]
                axes.plot(x, _columns(ordered, metric), "o-", label=name, markersize=4)
                axes.set(title=titles[metric], xlabel=unit, xscale="log")
                axes.title.set_fontsize(10)
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
                if key == walk:
                    axes.set_xticks(_legible({row[walk] for row in rows}))
                axes.grid(alpha=0.3)
    _finish(figure, grid[0, 0], path)
    return True


def _distance(rows: Sequence[Row]) -> str:
    """The first Fréchet distance that was measured; empty where there is none."""
    names = rows[0]["values"]
    return next((name for name in names if name.startswith(("fd_", "fid", "sfid"))), "")


def _numbers(row: Row, *names: str) -> bool:
    return all(isinstance(row["values"].get(name), float) for name in names)


def _columns(rows: Sequence[Row], name: str) -> list[float]:
    return [row["values"][name] for row in rows]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """More score and less distance; better in one of them."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def _swept(rows: Sequence[Row]) -> list[str]:
    return [key for key in AXES if len({str(row.get(key)) for row in rows}) > 1]


def _lines(rows: Sequence[Row], keys: Sequence[str], along: str) -> list[tuple[str, list[Row]]]:
    """Rows that differ in `along` only, with a name for each such line, in the order they came."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = ", ".join(f"{key} {_short(row[key])}".removeprefix("sampler ") for key in keys)
        found.setdefault(name, []).append(row)
    return [(name, sorted(line, key=lambda row: row[along])) for name, line in found.items()]


def _legible(numbers: Set[int]) -> list[int]:
    """Those whose labels do not touch on a logarithmic axis; of close ones the larger."""
    kept: list[int] = []
    for number in sorted(numbers, reverse=True):
        if not kept or number * 1.2 <= kept[-1]:
            kept.append(number)
    return kept


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _named(rows: Sequence[Row], metric: str) -> str:
    return str(rows[0]["names"][metric]).partition(" against ")[0]


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    handles, names = axes.get_legend_handles_labels()
    if any(names):
        columns = min(3, len(names))
        figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8)
    figure.savefig(path, dpi=150)
