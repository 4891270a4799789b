"""Several metrics over one set of pictures, of which none can hold up another, nor another rank.

Ranks wait for each other in three places. Where they may have to wait long, because one of them
drew or computed for longer, they meet over a process group of their own whose time-out is a week,
and tell each other what went wrong. Only then, all there and all knowing which metrics are left,
do they exchange sums over the ordinary group, which takes no time.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torchmetrics import Metric

from ldm import ranks

_PATIENCE = timedelta(days=7)
_T = TypeVar("_T")


class MetricGroup:
    """Metrics that are given the same batches, each over all ranks.

    A metric that raises, in whatever rank, is left out in all of them until the next `reset`, and
    its result is what it said. Every rank calls `reset` and `compute`; between them each may call
    `update` as often as it likes, or never. `makers` make the metrics, when they are first needed.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Metric]]) -> None:
        self.makers = dict(makers)
        self.metrics: dict[str, Metric] = {}
        self.failures: dict[str, str] = {}
        self._patient: Any = None

    def reset(self, device: torch.device) -> None:
        """Forget all pictures and failures; pictures will come on this device."""
        self.failures = {}
        if ranks.count() > 1 and self._patient is None:
            self._patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        for name, make in self.makers.items():
            try:
                if name not in self.metrics:
                    self.metrics[name] = make()
                self.metrics[name].to(device).reset()
            except Exception as error:
                self.failures[name] = _told(error)
        self._gathered(None)  # references take a while; then all ranks begin to draw together

    def update(self, *batch: Any) -> None:
        """Hand the batch to each metric."""
        for name, metric in self._left():
            try:
                metric.update(*batch)
            except Exception as error:
                self.failures[name] = _told(error)

    def fail(self, error: Exception) -> None:
        """There are no pictures to judge, or not all of them: no metric has a value."""
        self.failures |= dict.fromkeys(self.makers, _told(error))

    def compute(self) -> dict[str, float | str]:
        """Each metric's value, or in words why there is none; the same in every rank. The metrics
        have forgotten their pictures afterwards."""
        self._share_failures()
        if ranks.count() > 1:
            for name, metric in self._left():
                try:
                    metric.sync()
                except Exception as error:
                    self.failures[name] = _told(error)
        values: dict[str, float | str] = {}
        for name, metric in self._left():
            try:
                # The plain method: the metric's own, wrapped, would exchange sums a second time.
                values[name] = float(type(metric).compute(metric))
            except Exception as error:
                values[name] = _told(error)
        for metric in self.metrics.values():
            metric.reset()
        told = {**self.failures, **values}
        return self._gathered({name: told[name] for name in self.makers})[0]

    def _left(self) -> list[tuple[str, Metric]]:
        return [(n, self.metrics[n]) for n in self.makers if n not in self.failures]

    def _share_failures(self) -> None:
        for rank, failures in enumerate(self._gathered(self.failures)):
            for name, told in failures.items():
                self.failures.setdefault(name, f"{told} (on rank {rank})")

    def _gathered(self, mine: _T) -> list[_T]:
        """Every rank's; each waits as long as it takes."""
        if self._patient is None:
            return [mine]
        found: list[Any] = [None] * ranks.count()
        distributed.all_gather_object(found, mine, group=self._patient)
        return found


def _told(error: Exception) -> str:
    """On one line; a ValueError is a sentence of ours, any other is named with its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
