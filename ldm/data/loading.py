"""Batches out of worker processes: errors in one line, losses counted, nothing waited for twice."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from ldm.data.errors import DataError, Fault
from ldm.data.order import Order, Rows, Shaped
from ldm.data.reading import Reading
from ldm.types import Condition

log = logging.getLogger(__name__)
_NAMED = 20  # unreadable samples that are named one by one
_GRACE = 1000  # the tolerated share is taken of at least so many samples


@runtime_checkable
class Data(Protocol):
    """Numbered samples that a worker process can read."""

    reading: Reading

    @property
    def content_hash(self) -> str:
        """Changes with the samples and their order."""

    @property
    def remote(self) -> bool:
        """Whether there is anything to prefetch."""

    def __len__(self) -> int: ...

    def captions(self) -> Iterator[str]:
        """Every sample's default caption, in order."""

    def order(self, seed: int, global_batch: int) -> Order:
        """The order of training for batches of that many samples over all ranks."""

    def shaped(self) -> list[Shaped]:
        """Every sample once, those of a shape together."""

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""

    def prefetch(self, rows: Rows) -> None:
        """Begins to fetch what these rows need, and returns at once."""

    def null_text(self) -> Condition | None:
        """What the text encoder says of the empty caption, where batches carry text states."""

    def read(self, rows: Rows) -> tuple[Any, list[Fault]]:
        """A batch, and the samples that were replaced in it."""


@runtime_checkable
class Plan(Protocol):
    """Which rows of the data each batch holds."""

    data: Data

    @property
    def stride(self) -> int:
        """Samples in a batch of all ranks."""

    def rows(self, step: int) -> Rows:
        """This rank's rows of batch `step`."""


class _Steps:
    """The sampler: step numbers are all that a worker is sent."""

    def __init__(self, count: int | None) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        step = 0
        while self.count is None or step < self.count:
            yield step
            step += 1


class _Reader(Dataset[Any]):
    """Runs in the workers. An error travels as a value, so that the user sees one line of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.data = plan.data
        ahead = self.data.reading.ahead if self.data.remote else 0
        self.steps_ahead = -(-ahead // plan.stride)

    def __getitem__(self, step: int) -> Any:
        rows = self.plan.rows(step)
        if self.steps_ahead:
            self.data.prefetch(rows)
            self.data.prefetch(self.plan.rows(step + self.steps_ahead))
        try:
            return self.data.read(rows)
        except DataError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def loaded(plan: Plan, count: int | None, workers: int) -> Iterator[Any]:
    """Batches 0..count-1 of a plan, without end where that is None, in order, faults counted.

    Raises DataError where training cannot go on.
    """
    data = plan.data
    loader = DataLoader(
        _Reader(plan),
        sampler=_Steps(count),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        timeout=data.reading.timeout if workers else 0,
    )
    losses = _Losses(data.reading.tolerate)
    for step, answer in enumerate(_explained(iter(loader), plan, data.reading.timeout)):
        if isinstance(answer, DataError):
            raise answer
        batch, faults = answer
        losses.count(len(plan.rows(step).samples), faults)
        yield batch


def _explained(batches: Iterator[Any], plan: Plan, timeout: float) -> Iterator[Any]:
    """DataLoader's own errors, told in one line that names the shards in question."""
    step = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            shards = ", ".join(plan.data.where(plan.rows(step)))
            first = str(error).splitlines()[0]
            if "timed out" in first:
                raise DataError(
                    f"no batch for {timeout:g} s | reading {shards} | is the storage stuck? "
                    "raise data.reading.timeout if it is only slow"
                ) from None
            raise DataError(
                f"a data worker died ({first}) | reading {shards} | most often the memory ran "
                "out: lower the number of workers or the batch"
            ) from None
        yield batch
        step += 1


class _Losses:
    """Counts unreadable samples; too large a share of them ends the training."""

    def __init__(self, tolerate: float) -> None:
        self.tolerate = tolerate
        self.seen = 0
        self.kinds: Counter[str] = Counter()
        self.named: set[tuple[str, str]] = set()

    def count(self, seen: int, faults: list[Fault]) -> None:
        self.seen += seen
        for fault in faults:
            self.kinds[fault.kind] += 1
            name = (fault.shard, fault.key)
            if name not in self.named and len(self.named) < _NAMED:
                self.named.add(name)
                log.warning("%s | replaced by another sample", fault)
        if self.kinds.total() > self.tolerate * max(self.seen, _GRACE):
            raise DataError(
                f"{self.kinds.total()} of {self.seen} samples are unreadable, more than "
                f"data.reading.tolerate = {self.tolerate:g} | the last: {faults[-1]} | run "
                "`ldm shards verify`, mend the shards or raise it"
            )
