"""Where numbers go: TensorBoard and the run's own record, both on one axis.

The axis is the optimizer step that was just finished, counted from 1. Lightning's own count is one
behind, and validations and samples would stand one step beside the training that they belong to.
"""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class StepAxis(L.Callback):
    """Tells loggers the step, whatever Lightning hands them."""

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Remember whose step it is."""
        self._trainer = trainer

    @property
    def step(self) -> int:
        """Optimizer steps finished, of the whole run."""
        return 0 if self._trainer is None else self._trainer.global_step


class TensorBoard(TensorBoardLogger):
    """Event files in `folder`. With `after`, readers forget what an earlier process wrote about
    steps behind it."""

    def __init__(self, folder: Path, axis: StepAxis, after: int | None = None) -> None:
        purge: dict[str, Any] = {} if after is None else {"purge_step": after + 1}
        super().__init__(str(folder.parent), name="", version=folder.name, **purge)
        self.axis = axis

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """On the run's axis; Lightning's epoch is left out, for nothing here has epochs."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics(values, self.axis.step)


class JsonLines(Logger):
    """Appends `{"step": ..., name: value, ...}` to `path`; a non-finite value is written as a
    string, so that every line is valid JSON. What stands behind step `after` is cut off."""

    def __init__(self, path: Path, axis: StepAxis, after: int | None = None) -> None:
        super().__init__()
        self.path, self.axis = path, axis
        if after is not None and path.exists():
            self._cut(after)

    @property
    def name(self) -> str:
        """Part of Lightning's interface."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Part of Lightning's interface."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """The configuration stands in the run's config.yaml; nothing is written twice."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """One line."""
        values = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items() if k != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": self.axis.step, **values}) + "\n")

    @rank_zero_only
    def _cut(self, after: int) -> None:
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= after:
                    kept.append(line + "\n")
            except ValueError:  # a killed process wrote half of it
                continue
        draft = self.path.with_name(f".{self.path.name}")
        draft.write_text("".join(kept))
        draft.replace(self.path)
