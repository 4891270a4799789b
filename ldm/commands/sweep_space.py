"""Where a sweep searches, its journal, and which trial is next."""

import argparse
import os
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ldm.commands.sweep import run_of
from ldm.runs.state import process_is_there, read_state

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_STOPPED = ("interrupted", "stale", "failed")


def space_of(spaces: list[str]) -> dict[str, BaseDistribution]:
    """`KEY=A,B`, `KEY=LOW..HIGH` (whole numbers where both ends are), `KEY=LOW..HIGH:log`;
    ValueError names what cannot be searched."""
    found: dict[str, BaseDistribution] = {}
    for text in spaces:
        key, equals, values = text.partition("=")
        if not equals or not key or not values or key in found:
            raise ValueError(
                f"--over {text}: write KEY=A,B,C or KEY=LOW..HIGH, each key once, such as "
                "--over module.optimizer.lr=1e-4..1e-2:log"
            )
        found[key] = _space(text, values)
    return found


def _space(text: str, values: str) -> BaseDistribution:
    if match := _RANGE.fullmatch(values):
        whole = all(re.fullmatch(r"[-+]?\d+", end) for end in match.groups()[:2])
        low, high = float(match[1]), float(match[2])
        if not low < high or (match[3] and low <= 0):
            raise ValueError(
                f"--over {text}: the low end must be below the high one, and above 0 for :log"
            )
        if whole:
            return IntDistribution(int(low), int(high), log=bool(match[3]))
        return FloatDistribution(low, high, log=bool(match[3]))
    choices = [yaml.safe_load(one) for one in values.split(",")]
    if len(choices) < 2:
        raise ValueError(f"--over {text}: one value is no search; give KEY=VALUE without --over")
    return CategoricalDistribution(choices)


def opened(arguments: argparse.Namespace, folder: Path) -> Any:
    """The sweep of this name, begun or continued; ValueError where it searched something else."""
    space_of(arguments.over)  # refused before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=arguments.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        direction="maximize" if arguments.maximise else "minimize",
        load_if_exists=True,
    )
    # Fresh numbers in each process; `constant_liar`: what others try now counts as tried.
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.sampler = TPESampler(seed=len(study.trials), constant_liar=True)
    asked = {
        "over": arguments.over,
        "override": arguments.override,
        "metric": arguments.metric,
        "maximise": arguments.maximise,
    }
    begun = study.user_attrs
    for key, value in asked.items():
        if key in begun and begun[key] != value:
            raise ValueError(
                f"{folder} is a sweep with {key} {begun[key]}, not {value}; give another name, or "
                "take it back to continue"
            )
        study.set_user_attr(key, value)
    return study


def proposals(study: Any, arguments: argparse.Namespace) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trials that were left in the middle, then new ones, until there are so many."""
    space, me = space_of(arguments.over), f"{platform.node()}:{os.getpid()}"
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if _left(trial, run_of(arguments, trial.number)):
            note(study, trial.number, "owner", me)
            yield trial.number, trial.params
    while len(study.get_trials(deepcopy=False)) < arguments.trials:
        trial = study.ask(space)
        note(study, trial.number, "owner", me)
        yield trial.number, trial.params


def note(study: Any, number: int, name: str, text: str) -> None:
    """Beside a trial that this process may only have read."""
    storage = study._storage
    trial = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    storage.set_trial_user_attr(trial, name, text)


def _left(trial: FrozenTrial, run: Path) -> bool:
    """Whether the process that trained it is gone; other machines' are judged by their run."""
    host, _, process = str(trial.user_attrs.get("owner", ":")).rpartition(":")
    if host == platform.node():
        return not process_is_there(process)
    return read_state(run).name in _STOPPED
