"""`ldm sweep`: the same training with settings that are searched for; stopped, it goes on.

Optuna proposes (extra `sweep`), its journal is one file that only grows, each trial is a run folder
of its own by the command that a person would type.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldm.commands.child import ended
from ldm.commands.options import refuse_below
from ldm.runs.folder import run_folder
from ldm.runs.signals import RETRY, SAVED

ROOT = Path(__file__).parents[2]


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("sweep", help="search for good settings; resumable")
    parser.add_argument("name", help="of the sweep; its runs are NAME-000, NAME-001, …")
    parser.add_argument("override", nargs="*", help="as for train.py: experiment=… key=value")
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="KEY=SPACE",
        help="A,B,C | LOW..HIGH | LOW..HIGH:log; repeatable",
    )
    parser.add_argument("--metric", required=True, help="what is judged, such as val/loss: its end")
    parser.add_argument("--maximise", action="store_true", help="more is better")
    parser.add_argument("--trials", type=int, default=20, help="in all, earlier ones with")
    parser.add_argument("--run-root", default="runs")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Train until there are so many trials; the page is written anew after each."""
    if find_spec("optuna") is None:
        raise ValueError("the package optuna is not installed; pip install 'ldm[sweep]'")

    from ldm.commands.sweep_page import write_page
    from ldm.commands.sweep_space import opened, proposals

    refuse_below(arguments, 1, "trials")
    folder = run_folder(arguments.run_root, arguments.name).path
    study = opened(arguments, folder)
    for number, settings in proposals(study, arguments):
        command = command_of(arguments, number, settings)
        print(f"\n$ {shlex.join(command)}", flush=True)
        code, asked = ended([sys.executable, *command[1:]])
        if code in (SAVED, RETRY):
            print(f"  stopped  trial {number}; the same command continues")
            return code
        judge(study, number, code, run_of(arguments, number), arguments.metric)
        print(f"    sweep  {write_page(study, folder)}", flush=True)
        if asked:
            print("  stopped  the same command continues")
            return SAVED
    print(f"    sweep  {write_page(study, folder)}")
    return 0


def run_of(arguments: argparse.Namespace, number: int) -> Path:
    """The trial's run folder."""
    return Path(arguments.run_root) / f"{arguments.name}-{number:03d}"


def command_of(
    arguments: argparse.Namespace, number: int, settings: Mapping[str, Any]
) -> list[str]:
    """What a person would type for this trial."""
    place = run_of(arguments, number)
    script = ROOT / "train.py"
    shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    own = [f"name={place.name}", f"run_root={place.parent}"]
    return [
        *("python", str(shown), *arguments.override, *own),
        *(f"{key}={value}" for key, value in settings.items()),
    ]


def judge(study: Any, number: int, code: int, run: Path, metric: str) -> None:
    """Tell the study how the trial ended: with the metric's newest value, or why with none."""
    from optuna.trial import TrialState

    from ldm.commands.sweep_space import note
    from ldm.runs.state import read_state
    from ldm.runs.table import history

    found = history(run / "metrics.jsonl")
    if code == 0 and metric in found:
        study.tell(number, found[metric][1][-1])
        return
    why = read_state(run).error or f"exit code {code}"
    if code == 0:
        why = f"no {metric} was recorded; there are {', '.join(found) or 'no metrics'}"
    note(study, number, "why", why)
    study.tell(number, state=TrialState.FAIL)
    print(f"   failed  trial {number}: {why}", flush=True)
