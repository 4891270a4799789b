"""`ldm runs`: what has been trained, how it stands, and how runs differ."""

import argparse
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PAUSE = 5  # seconds between two looks of --watch


def add_parser(subparsers: Any) -> None:
    """The verb and its own verbs; without one it lists."""
    parser = subparsers.add_parser("runs", help="list, show, compare, repeat and clean up runs")
    parser.set_defaults(root="runs", metric=[], sort="age")
    _add_listing(parser)
    verbs = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = verbs.add_parser(
        "list",
        help="one line a run, newest last (what `ldm runs` does)",
        argument_default=argparse.SUPPRESS,  # what is not given stays as it was given before `list`
    )
    listing.add_argument("root", nargs="?", default="runs", help="the folder of the runs")
    _add_listing(listing)
    show = verbs.add_parser("show", help="all that is known of one run")
    show.add_argument("run")
    show.set_defaults(func=show_run)
    compare = verbs.add_parser("compare", help="what differs, and the metrics side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--plot", metavar="PNG", help="curves of all runs, laid over each other")
    compare.set_defaults(func=compare_runs)
    rerun = verbs.add_parser("rerun", help="train again from a run's record, then compare weights")
    rerun.add_argument("run")
    rerun.add_argument("--name", help="of the new run (default: NAME-rerun)")
    rerun.add_argument("--anyway", action="store_true", help="with other code or data than then")
    rerun.set_defaults(func=rerun_run)
    clean = verbs.add_parser("clean", help="what could go; --yes deletes it")
    clean.add_argument("root", nargs="?", default="runs", help="the folder of the runs")
    clean.add_argument("--yes", action="store_true", help="delete what was listed")
    clean.set_defaults(func=clean_runs)


def _add_listing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", help="only these, such as failed,stale")
    parser.add_argument("--stage", help="only this stage")
    parser.add_argument("--match", metavar="GLOB", help="only names like this, such as 'emoji-*'")
    parser.add_argument("--metric", action="append", help="a column; repeatable")
    parser.add_argument("--sort", help="name, step, age, state or a metric")
    parser.add_argument("--watch", action="store_true", help=f"again every {PAUSE} seconds")
    parser.set_defaults(func=list_runs)


def list_runs(arguments: argparse.Namespace) -> int:
    """The table."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # into a file or a pipe nothing is cut off
    if not arguments.watch:
        console.print(_table(arguments))
        return 0
    with (
        suppress(KeyboardInterrupt),
        Live(_table(arguments), console=console, screen=console.is_terminal) as live,
    ):
        while True:
            time.sleep(PAUSE)
            live.update(_table(arguments), refresh=True)
    return 0


def _table(arguments: argparse.Namespace) -> Any:
    from fnmatch import fnmatch

    from rich.table import Table

    from ldm.runs.state import STATES
    from ldm.runs.table import chosen, rows

    wanted = set(arguments.state.split(",")) if arguments.state else set(STATES)
    if unknown := wanted - set(STATES):
        raise ValueError(f"--state {sorted(unknown)[0]}: no such state; name {', '.join(STATES)}")
    found = [
        row
        for row in rows(Path(arguments.root))
        if row.state.name in wanted
        and (arguments.stage is None or row.stage == arguments.stage)
        and (arguments.match is None or fnmatch(row.name, arguments.match))
    ]
    columns = chosen(found, arguments.metric)
    if found:
        _refuse_unknown(arguments.sort, found)
    found.sort(key=lambda row: _order(row, arguments.sort))
    table = Table(box=None, header_style="bold")
    table.add_column("run", no_wrap=True)
    for name in ("stage", "state", "step"):
        table.add_column(name, justify="right" if name == "step" else "left", no_wrap=True)
    for name in [*columns, "age"]:
        table.add_column(name.replace("/", "/\n").replace("_", "\n"), justify="right", no_wrap=True)
    for row in found:
        step = f"{row.step}" + (f"/{row.steps}" if row.steps else "")
        values = [number(row.metrics.get(name)) for name in columns]
        table.add_row(row.name, row.stage, _told(row), step, *values, age(row.changed))
    return table


def _refuse_unknown(key: str, rows: list[Any]) -> None:
    from ldm.commands.errors import nearest

    known = [
        "name",
        "step",
        "age",
        "state",
        *sorted({name for row in rows for name in row.metrics}),
    ]
    if key not in known:
        near = nearest(key, known) or f"; name one of {', '.join(known)}"
        raise ValueError(f"--sort {key}: no run has it{near}")


def _order(row: Any, key: str) -> Any:
    plain = {"name": row.name, "step": row.step, "age": row.changed, "state": row.state.name}
    if key in plain:
        return plain[key]
    return row.metrics.get(key, float("inf"))


def _told(row: Any) -> str:
    colours = {"running": "green", "finished": "blue", "failed": "red", "stale": "yellow"}
    colour = colours.get(row.state.name, "default")
    error = f" {row.state.error[:60]}" if row.state.error else ""
    return f"[{colour}]{row.state.name}[/]" + error.replace("[", r"\[")


def number(value: float | None) -> str:
    """Four digits that count, or a dash."""
    return "–" if value is None else f"{value:.4g}"


def age(then: float) -> str:
    """How long ago, in the largest fitting unit."""
    seconds = max(0.0, time.time() - then)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def show_run(arguments: argparse.Namespace) -> int:
    """Record, state, newest metrics, checkpoints and samples."""
    from ldm.runs.checkpoints import checkpoints
    from ldm.runs.folder import RunFolder

    row, provenance = _row(arguments.run), RunFolder(Path(arguments.run)).starts()
    lines = {
        "run": f"{row.path}  ({row.stage})",
        "state": f"{row.state.name}  {row.state.error}".strip(),
        "step": f"{row.step}" + (f" of {row.steps}" if row.steps else ""),
        "changed": f"{age(row.changed)} ago",
    }
    if provenance:
        first = provenance[-1]
        lines["command"] = " ".join(first.get("command", []))
        lines["commit"] = str(first.get("commit") or "(none)")
        lines["started"] = ", ".join(str(one.get("time")) for one in provenance)
        lines["host"] = str(first.get("host"))
    saved = [f"{c.step}" for c in checkpoints(row.path / "checkpoints")]
    lines["saved"] = ", ".join(saved) or "(no checkpoint)"
    for name, text in lines.items():
        print(f"{name:>9}  {text}")
    for name, value in sorted(row.metrics.items()):
        print(f"{'':>9}  {name} {number(value)}")
    return 0


def _row(run: str) -> Any:
    from ldm.runs.table import read_row

    row = read_row(Path(run))
    if row is None:
        raise FileNotFoundError(f"{run}: not a run folder; name a folder that train.py wrote")
    return row


def compare_runs(arguments: argparse.Namespace) -> int:
    """Only the keys that differ, then every metric that any of the runs has."""
    from rich.console import Console

    from ldm.runs.compare import differing, side_by_side

    paths = [Path(run) for run in arguments.runs]
    rows = [_row(run) for run in arguments.runs]
    names = [row.name for row in rows]
    console = Console()
    changed = differing(paths)
    console.print(_columns("setting", names, changed, str))
    if not changed:
        console.print("(the settings are equal)")
    console.print(_columns("metric", names, side_by_side(rows), number))
    if arguments.plot:
        from ldm.commands.curves import overlay

        overlay(paths, Path(arguments.plot))
        print(f"plot  {arguments.plot}")
    return 0


def _columns(head: str, names: list[str], table: dict[str, list[Any]], show: Any) -> Any:
    from rich.table import Table

    result = Table(box=None, header_style="bold")
    for name in (head, *names):
        result.add_column(name, overflow="fold")
    for key, values in table.items():
        result.add_row(key, *(show(value).replace("[", r"\[") for value in values))
    return result


def rerun_run(arguments: argparse.Namespace) -> int:
    """Train the recorded configuration again under another name; say whether the weights of the
    last checkpoint are equal, bit for bit."""
    from omegaconf import OmegaConf

    from ldm.commands.train import train
    from ldm.runs.compare import recorded_data, refuse_other_code
    from ldm.runs.folder import RunFolder
    from ldm.runs.weights import same_weights

    old = RunFolder(Path(arguments.run))
    config = old.config()
    provenance = old.starts()
    if not arguments.anyway:
        refuse_other_code(old.path, provenance[-1] if provenance else {})
        _refuse_other_data(old.path, config)
    name = arguments.name or f"{config['name']}-rerun"
    node: Any = OmegaConf.create({**config, "name": name, "run_root": str(old.path.parent)})
    if code := train(node):
        return code
    new = old.path.parent / name
    verdict = same_weights(old.path, new)
    if recorded_data(old.path) not in ({}, recorded_data(new)):
        verdict += "; the data has changed since then"
    print(f"    rerun  {verdict}")
    return 0 if verdict.startswith("equal") else 1


def _refuse_other_data(path: Path, config: dict[str, Any]) -> None:
    from ldm.commands.building import build
    from ldm.runs.compare import recorded_data

    for split, then in recorded_data(path).items():
        if build(config["data"][split], f"data.{split}").content_hash != then:
            raise ValueError(
                f"{path}: data.{split} holds other pictures than it was trained on; put them back, "
                "or repeat it with --anyway"
            )


def clean_runs(arguments: argparse.Namespace) -> int:
    """Half-written and damaged checkpoints, and runs that ended without any checkpoint. Nothing of
    a run that is running or stale."""
    import shutil

    from ldm.runs.table import rows
    from ldm.runs.weights import leftovers

    found = [item for row in rows(Path(arguments.root)) for item in leftovers(row)]
    for path, why in found:
        print(f"{path}  ({why})")
        if arguments.yes:
            shutil.rmtree(path)
    if not found:
        print("nothing to clean up")
    elif not arguments.yes:
        print(f"{len(found)} folders; delete them with --yes")
    return 0
