"""`ldm report`: one HTML file about one or several runs, to send to a colleague."""

import argparse
import base64
import re
from pathlib import Path
from statistics import median
from typing import Any

HEADLINES = ("sample/", "reconstruction/", "val/", "time/images_per_second")
POINTS = 600  # of a curve; more cannot be seen
PICTURES = 12  # of a run, evenly over time


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("report", help="one self-contained HTML file about runs")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", default="report.html", metavar="HTML")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file; FileNotFoundError where a folder is no run."""
    from ldm.commands.page import page

    paths = [Path(path) for path in arguments.runs]
    stories = [story(path) for path in paths]
    shown = {"runs": stories, "differing": _differing(paths)}
    text = page("report", " · ".join(one["name"] for one in stories), shown)
    Path(arguments.out).write_text(text, encoding="utf-8")
    print(f"{arguments.out}: {len(text) / 1e6:.1f} MB, opens anywhere")
    return 0


def _differing(paths: list[Path]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs."""
    from ldm.runs.compare import differing

    if not all((path / "config.yaml").is_file() for path in paths):
        return {}
    return {key: [str(value) for value in values] for key, values in differing(paths).items()}


def story(path: Path) -> dict[str, Any]:
    """What the page shows of a run, as JSON's kinds of values."""
    from ldm.commands import report_parts as parts
    from ldm.commands.curves import without_repeats
    from ldm.commands.runs import age
    from ldm.runs.table import history, read_row

    row = read_row(path)
    if row is None:
        raise FileNotFoundError(f"{path}: not a run folder; name a folder that train.py wrote")
    curves = without_repeats(history(path / "metrics.jsonl"))
    file = path / "config.yaml"
    config = _settings(file)
    evaluation = config.get("evaluation") or {}
    steps = f"{row.step}" + (f" of {row.steps}" if row.steps else "")
    return {
        "name": row.name,
        "summary": f"{row.stage}, {row.state.name}, step {steps}, {age(row.changed)} ago",
        "headline": {
            name: median(values) if name.startswith("time/") else values[-1]
            for name, (_, values) in curves.items()
            if name.startswith(HEADLINES)
        },
        "history": {name: _thinned(*curve) for name, curve in curves.items()},
        "samples": _samples(path / "samples"),
        "prompts": [str(prompt) for prompt in evaluation.get("grid_prompts") or []],
        "warnings": parts.warnings_of(path, row, curves),
        "throughput": parts.throughput(path, curves, config.get("global_batch")),
        "settled": parts.settled(curves, evaluation.get("prompts")),
        "evaluated": parts.evaluated(path),
        "data": parts.data_card(config),
        "provenance": _provenance(path),
        "config": file.read_text("utf-8", "replace") if file.is_file() else "",
    }


def _thinned(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Evenly, with both ends."""
    count = len(steps)
    if count <= POINTS:
        return steps, values
    kept = [round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)]
    return [steps[i] for i in kept], [values[i] for i in kept]


def _samples(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.png")):
        if match := re.fullmatch(r"(.+)-(\d+)", path.stem):
            found.append((int(match[2]), match[1], path))
    found.sort()
    if len(found) > PICTURES:
        last = len(found) - 1
        found = [found[round(i * last / (PICTURES - 1))] for i in range(PICTURES)]
    return [
        {
            "step": step,
            "kind": kind,
            "image": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        }
        for step, kind, path in found
    ]


def _settings(file: Path) -> dict[str, Any]:
    """The configuration; nothing where there is none, or half of one."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _provenance(path: Path) -> dict[str, str]:
    from ldm.runs.compare import recorded_data
    from ldm.runs.folder import RunFolder

    starts = RunFolder(path).starts()
    if not starts:
        return {}
    last = starts[-1]
    shown = {
        "command": " ".join(last.get("command", [])),
        "commit": str(last.get("commit") or "none")
        + (" with uncommitted changes" if (path / "uncommitted.diff").is_file() else ""),
        "started": ", ".join(str(one.get("time")) for one in starts),
        "python": str(last.get("python")),
        "packages": ", ".join(f"{k} {v}" for k, v in last.get("packages", {}).items()),
        **{f"data, {split}": str(value) for split, value in recorded_data(path).items()},
    }
    return {name: text for name, text in shown.items() if text}
