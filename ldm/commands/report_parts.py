"""What the page of a run says besides curves: data, measurements with confidence, throughput,
and what should make one wary."""

import base64
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]

CAPTIONS = 12  # shown of a set
LEAST = 10  # records, for a mean of the last tenth to have a spread
VARIES = ("train/loss", "grad/", "time/images", "time/step")  # from step to step, around a mean
SMALLER_IS_BETTER = ("loss", "distance", "fd_", "fid", "kid", "cmmd", "lpips", "perceptual")


def data_card(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each split: how many, what their captions are like, and a sheet of random pictures. Data
    that is not on this machine (any more) is named and left."""
    cards = []
    for split in ("train", "val"):
        node = config.get("data", {}).get(split)
        if isinstance(node, Mapping) and "_target_" in node:
            card: dict[str, Any] = {
                "split": split,
                "from": str(node.get("shards", node["_target_"])),
            }
            try:
                card |= _counted(node, f"data.{split}")
            except (ValueError, OSError) as error:
                card["missing"] = " ".join(str(error).split())
            cards.append(card)
    return cards


def _counted(node: Mapping[str, Any], key: str) -> dict[str, Any]:
    from ldm.commands.building import build

    data = build(node, key)
    captions = list(data.captions())
    lengths = [len(caption) for caption in captions] or [0]
    spaced = captions[:: max(1, len(captions) // CAPTIONS)][:CAPTIONS]
    return {
        "count": len(data),
        "different": len(set(captions)),
        "empty": sum(not caption for caption in captions),
        "lengths": f"{min(lengths)} to {max(lengths)}, median {statistics.median(lengths):g}",
        "captions": spaced,
        "sheet": _sheet(data),
    }


def _sheet(data: Any) -> str:
    from ldm.data.report import Sheet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        try:
            Sheet(rows=3, columns=8, side=96).save(data, path)
        except KeyError:  # latents have no pictures
            return ""
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def settled(curves: Curves, drawn: int | None) -> list[dict[str, str]]:
    """Each metric at the end. What varies from step to step: the mean of its last tenth (at least
    LEAST records), with Student's 95 % interval as if they were independent. A share of `drawn`
    pictures: Wilson's interval. What is measured now and then: its last value and its best."""
    lines = []
    for name, (steps, values) in curves.items():
        last = values[-max(LEAST, len(values) // 10) :]
        line = {"name": name, "value": f"{values[-1]:.4g}", "interval": "", "how": "the last"}
        if name.startswith("sample/recall") and drawn:
            low, high = wilson(values[-1], drawn)
            line |= {"interval": f"{low:.3g} to {high:.3g}", "how": f"of {drawn} pictures"}
        elif name.startswith(VARIES) and len(values) > 2 * LEAST:
            mean = statistics.fmean(last)
            half = student(len(last) - 1) * statistics.stdev(last) / len(last) ** 0.5
            line |= {"value": f"{mean:.4g}", "interval": f"{mean - half:.4g} to {mean + half:.4g}"}
            line["how"] = f"mean of the last {len(last)} records"
        elif len(values) > 1 and name.startswith(("val/", "sample/", "reconstruction/")):
            best = _best(name, values)
            line["how"] = f"the last; best {values[best]:.4g} at step {steps[best]}"
        lines.append(line)
    return lines


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, to a percent from 5 degrees of freedom on
    (Cornish & Fisher's expansion around the normal one)."""
    return 1.959964 + 2.372 / freedom + 2.822 / freedom**2


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a probability of which `share` was seen in `count` draws (Wilson
    1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def evaluated(path: Path) -> list[dict[str, Any]]:
    """What `ldm evaluate` measured last, a row a setting; none where it did not."""
    try:
        rows = json.loads((path / "evaluation" / "results.json").read_text(encoding="utf-8"))
        return [_shown(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {k: str(row[k]) for k in ("sampler", "steps", "guidance", "pictures") if k in row}
    for name, value in row["values"].items():
        text = f"{value:.4g}" if isinstance(value, int | float) else "–"
        if name.startswith("recall@") and isinstance(value, int | float):
            low, high = wilson(value, int(row["pictures"]))
            text += f" ({low:.3g} to {high:.3g})"
        shown[name] = text
    return shown


def throughput(path: Path, curves: Curves, batch: int | None) -> dict[str, str]:
    """How fast, and how much of the time was training."""
    from ldm.runs.attempts import Attempts

    found = {}
    if rates := curves.get("time/images_per_second", ((), ()))[1]:
        found["images per second"] = f"median {statistics.median(rates):.4g}, best {max(rates):.4g}"
    if waits := curves.get("time/data_wait_share", ((), ()))[1]:
        found["waiting for data"] = f"{statistics.fmean(waits):.1%} of a step"
    if steps := curves.get("train/loss", ((), ()))[0]:
        seen = f", {steps[-1] * batch:,} pictures" if batch else ""
        found["trained"] = f"{steps[-1]:,} steps{seen}"
    if goodput := curves.get("time/goodput", ((), ()))[1]:
        found["goodput"] = f"{goodput[-1]:.1%} of the run's life were training steps"
    restarts, lost = Attempts(path).lost()
    if restarts:
        found["restarts"] = f"{restarts}, {lost / 60:.1f} minutes between them"
    return found


def warnings_of(path: Path, row: Any, curves: Curves) -> list[str]:
    """What a reader should know before believing the numbers."""
    found = []
    if row.state.name in ("failed", "interrupted", "stale"):
        found.append(f"This run is {row.state.name}. {row.state.error}".strip())
    waits = curves.get("time/data_wait_share", ((), ()))[1]
    if waits and statistics.fmean(waits) > 0.2:
        share = statistics.fmean(waits)
        found.append(f"{share:.0%} of the time was spent waiting for data: raise workers.")
    goodput = curves.get("time/goodput", ((), (1.0,)))[1]
    if goodput[-1] < 0.8:
        found.append(
            f"Goodput {goodput[-1]:.0%}: the rest went into validation, samples, checkpoints and "
            "restarts; look less often (evaluation.every, checkpoint.every)."
        )
    steps, losses = curves.get("val/loss", ((), ()))
    if len(losses) > 2 and losses[-1] > 1.02 * min(losses):
        best = steps[losses.index(min(losses))]
        found.append(f"val/loss was best at step {best} and has grown since: it may overfit.")
    if (path / "uncommitted.diff").is_file():
        found.append("It was trained with uncommitted changes (uncommitted.diff in the run).")
    if any((path / "checkpoints" / "corrupt").glob("*")):
        found.append("Damaged checkpoints lie in checkpoints/corrupt.")
    return found


def _best(name: str, values: Sequence[float]) -> int:
    small = any(word in name for word in SMALLER_IS_BETTER)
    return min(range(len(values)), key=lambda i: values[i] if small else -values[i])
