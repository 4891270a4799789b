"""The page of a sweep: what was tried, what came out, and which settings mattered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from ldm.commands.page import page
from ldm.files import write_text

ENOUGH = 5  # trials that ended well, before anything is said about what mattered


def write_page(study: Any, folder: Path) -> Path:
    """`sweep.html`, which needs nothing else."""
    trials = study.get_trials(deepcopy=False)
    story = {
        "name": study.study_name,
        "metric": study.user_attrs["metric"],
        "maximise": study.user_attrs["maximise"],
        "override": study.user_attrs["override"],
        "over": study.user_attrs["over"],
        "mattered": mattered(trials),
        "logarithmic": sorted({k for t in trials for k in t.params if _logarithmic(t, k)}),
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "settings": trial.params,
                "why": trial.user_attrs.get("why", ""),
            }
            for trial in trials
        ],
    }
    path = folder / "sweep.html"
    write_text(path, page("sweep", study.study_name, story))
    return path


def mattered(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Of each setting, the share of the values' variance that it explains alone, 0 to 1: by the
    means of its choices, or a parabola over its numbers (on their logarithm where it was searched
    so). It is corrected for what chance explains (adjusted R²); settings that only matter together
    are not seen. Empty before there are enough trials."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if len(done) < ENOUGH:
        return {}
    values = np.array([trial.value for trial in done])
    found = {}
    for key in done[0].params:
        columns = _columns([trial.params[key] for trial in done], _logarithmic(done[0], key))
        found[key] = explained(columns, values)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def explained(columns: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Adjusted R² of the least-squares fit of values `[n]` by columns `[n k]` and a constant, at
    least 0."""
    count = len(values)
    full = np.column_stack([np.ones(count), columns])
    rank = int(np.linalg.matrix_rank(full))
    spread = float(np.square(values - values.mean()).sum())
    if spread == 0 or rank >= count:
        return 0.0
    weights = np.linalg.lstsq(full, values, rcond=None)[0]
    rest = float(np.square(values - full @ weights).sum())
    return max(0.0, 1 - (rest / (count - rank)) / (spread / (count - 1)))


def _columns(settings: list[Any], logarithmic: bool) -> NDArray[np.float64]:
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in settings):
        numbers = np.array(settings, np.float64)
        numbers = np.log(numbers) if logarithmic else numbers
        scale = numbers.std() or 1.0
        numbers = (numbers - numbers.mean()) / scale
        return np.column_stack([numbers, numbers**2])
    names = sorted({str(one) for one in settings})[1:]
    return np.array([[str(one) == name for name in names] for one in settings], np.float64)


def _logarithmic(trial: FrozenTrial, key: str) -> bool:
    return bool(trial.distributions[key]._asdict().get("log"))
