"""The run's own record of its metrics: one JSON line a step, that no tool is needed to read."""

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLines(Logger):
    """Appends `{"step": ..., name: value, ...}` to `path`; a non-finite value is written as a
    string, so that every line is valid JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

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
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One line."""
        values = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items() if k != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
