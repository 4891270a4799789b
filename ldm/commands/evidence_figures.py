"""The five figures of `ldm evidence`: numbers and pictures in, one PNG each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from numpy.typing import NDArray
from torch import Tensor

OURS, OTHER, THIRD = "#4477aa", "#bbbbbb", "#cc6677"
WIDTH = 9.0  # inches; 1,170 pixels
Numbers = Mapping[str, Sequence[float]]


def forward(
    path: Path, chain: Sequence[tuple[str, Tensor]], times: Sequence[float], found: Numbers
) -> None:
    """The chain of one picture above signal, correlation and the tests for noise by time."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2), squeeze=False)[:, 0]
    _pictures(top, [chain])
    snr, correlation, tests = bottom.subplots(1, 3)
    snr.plot(times, [min(max(x, -4), 4) for x in found["log10_snr"]], color=OURS)
    _titled(snr, "signal-to-noise ratio,\nlog10 (cut at ±4)", "t")
    correlation.plot(times, found["correlation"], color=OURS)
    _titled(correlation, "correlation of x_t\nwith the picture's latents", "t")
    for name, colour in (("own picture", OURS), ("neighbours", THIRD)):
        values = [max(abs(x), 0.1) for x in found[name]]
        tests.semilogy(times, values, color=colour, label=name)
    tests.axhline(2.58, linestyle="--", color="0.3", linewidth=1)
    tests.legend(fontsize=8)
    _titled(tests, "standard errors from pure noise\n(below the dashes: chance)", "t")
    _save(figure, path)


def prediction(
    path: Path, rows: Sequence[Sequence[tuple[str, Tensor]]], times: Sequence[float], found: Numbers
) -> None:
    """What the network sees and says of one picture, above loss and errors by time."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.2, 1.5), squeeze=False)[:, 0]
    _pictures(top, rows)
    loss, noise, data = bottom.subplots(1, 3)
    mean, half = np.array(found["loss"]), np.array(found["loss_half"])
    loss.plot(times, mean, color=OURS)
    loss.fill_between(times, mean - half, mean + half, color=OURS, alpha=0.25)
    loss.set_ylim(0, None)
    _titled(loss, "training loss\n(band: 95 % confidence)", "t")
    guess = np.array(found["linear"])
    for axes, key, line in ((noise, "noise", guess), (data, "data", 1 - guess)):
        axes.semilogy(times, found[key], color=OURS, label="network")
        axes.semilogy(times, line, "--", color="0.4", label="best linear guess")
        axes.legend(fontsize=8)
    _titled(noise, "squared error of the\npredicted noise", "t")
    _titled(data, "squared error of the\npredicted picture (latent)", "t")
    _save(figure, path)


def steps(path: Path, rows: Sequence[Mapping[str, Any]], shown: Sequence[Tensor]) -> None:
    """Pictures of the same seeds, a row a number of steps, beside quality against steps and
    seconds."""
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1), squeeze=False)[0]
    _rows_of_pictures(left, [str(row["steps"]) for row in rows], shown, "steps")
    distance, timed, detail, score = right.subplots(2, 2).ravel()
    numbers = [row["steps"] for row in rows]
    for axes, key, title in (
        (distance, "frechet", "Fréchet distance\n(less is better)"),
        (detail, "detail", "fine detail\n(real pictures: 1)"),
        (score, "clip", "CLIP score\n(more is better)"),
    ):
        axes.plot(numbers, [row[key] for row in rows], "o-", color=OURS, markersize=4)
        axes.set_xscale("log")
        axes.set_xticks(numbers)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        _titled(axes, title, "steps")
    seconds = [row["seconds"] for row in rows]
    timed.plot(seconds, [row["frechet"] for row in rows], "o-", color=OURS, markersize=4)
    _titled(timed, "Fréchet distance\nagainst time", "seconds a picture")
    detail.axhline(1, linestyle="--", color="0.5", linewidth=1)
    for axes in (distance, timed):
        axes.set_ylim(0, None)
    _save(figure, path)


def text(
    path: Path,
    intervals: Mapping[str, tuple[float, float]],
    attention: Sequence[tuple[Tensor, Sequence[tuple[str, Tensor]]]],
) -> None:
    """Bars with confidence intervals, above a picture and a map a word for each prompt."""
    figure = Figure(figsize=(WIDTH, 2.6 + 2.0 * len(attention)), layout="constrained")
    heights = (2.6, *(2.0 for _ in attention))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots()
    means, halves = zip(*intervals.values(), strict=True)
    bars = axes.barh(list(intervals), means, xerr=halves, capsize=5, color=[OURS, OTHER, OTHER])
    axes.bar_label(bars, [f"{m:.1f} ± {h:.1f}" for m, h in intervals.values()], padding=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(1.0, *(m + h for m, h in intervals.values())))
    _titled(axes, "CLIP score of pictures drawn with …  (± 95 % confidence)", "")
    for part, (picture, maps) in zip(parts[1:], attention, strict=True):
        _attention(part, picture, maps)
    _save(figure, path)


def cost(path: Path, bars: Sequence[tuple[str, float, float]]) -> None:
    """Pixels beside latents: (what, in pixel space, in latent space)."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    for axes, (title, pixel, latent) in zip(figure.subplots(1, len(bars)), bars, strict=True):
        drawn = axes.bar(["pixels", "latents"], [pixel, latent], color=[OTHER, OURS])
        axes.bar_label(drawn, fmt="{:.3g}")
        axes.margins(y=0.15)
        _titled(axes, f"{title}\n{pixel / latent:.1f} times more in pixels", "")
    _save(figure, path)


def _attention(part: SubFigure, picture: Tensor, maps: Sequence[tuple[str, Tensor]]) -> None:
    shown = _array(picture)
    all_axes = part.subplots(1, max(len(maps) + 1, 6))
    for axes in all_axes:
        axes.axis("off")
    all_axes[0].imshow(shown)
    for axes, (word, weights) in zip(all_axes[1:], maps, strict=False):
        axes.imshow(shown.mean(-1), cmap="gray", vmin=0, vmax=1)
        axes.imshow(weights.cpu().numpy(), cmap="inferno", alpha=0.65)
        axes.set_title(word, fontsize=9)


def _pictures(part: SubFigure, rows: Sequence[Sequence[tuple[str, Tensor]]]) -> None:
    grid = part.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for across, row in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(across, row, strict=True):
            axes.imshow(_array(picture), interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.axis("off")


def _rows_of_pictures(
    part: SubFigure, names: Sequence[str], pictures: Sequence[Tensor], title: str
) -> None:
    columns = len(pictures) // len(names)
    grid = part.subplots(len(names), columns, squeeze=False)
    for number, picture in enumerate(pictures):
        axes = grid[divmod(number, columns)]
        axes.imshow(_array(picture), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for name, first in zip(names, grid[:, 0], strict=True):
        first.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    part.suptitle(f"the same seeds by number of {title}", fontsize=10)


def _array(picture: Tensor) -> NDArray[np.float32]:
    shown: NDArray[np.float32] = (
        ((picture.detach().float().cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    )
    return shown


def _titled(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.tick_params(labelsize=9)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
