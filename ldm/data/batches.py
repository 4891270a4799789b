"""Batches for one rank: endless and resumable for training, exact and ordered for validation."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.errors import DataError, Fault
from ldm.data.order import Order, Rows
from ldm.data.reading import Reading

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

    def __len__(self) -> int: ...

    def captions(self) -> Iterator[str]:
        """Every sample's default caption, in order."""

    def order(self, seed: int, global_batch: int) -> Order:
        """The order of training for batches of that many samples over all ranks."""

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""

    def read(self, rows: Rows) -> tuple[Any, list[Fault]]:
        """A batch, and the samples that were replaced in it."""


def normalise(image: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Pixels 0..255 to float32 in [-1, 1], contiguous, on the device where they are."""
    return image.contiguous().float().sub_(127.5).div_(127.5)


class TrainingBatches:
    """An endless iterable over this rank's rows of each global batch."""

    def __init__(
        self,
        data: Data,
        *,
        global_batch: int,
        rank: int,
        world: int,
        start: int,
        seed: int,
        workers: int,
    ) -> None:
        if global_batch < 1 or global_batch % world:
            raise ValueError(
                f"a global batch of {global_batch} cannot be shared by {world} ranks; set a "
                f"multiple of {world}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} does not exist; ranks count from 0")
        self.data = data
        self.order = data.order(seed, global_batch)
        self.global_batch = global_batch
        self.rank = rank
        self.world = world
        self.start = start
        self.workers = workers

    def rows(self, step: int) -> Rows:
        """This rank's rows of the batch that is `step` batches behind the start."""
        count = self.global_batch // self.world
        first = self.start + step * self.global_batch + self.rank * count
        return self.order.rows(first, count)

    def __iter__(self) -> Iterator[Any]:
        return _read(self.data, _Steps(self, None), self.workers)


def training_batches(
    data: Data,
    *,
    global_batch: int,
    rank: int,
    world: int,
    start: int,
    seed: int,
    workers: int,
) -> TrainingBatches:
    """This rank's batches without end, after `start` samples consumed by all ranks together.

    Equal for any number of workers; the ranks' batches put together are equal for any `world`.
    """
    return TrainingBatches(
        data,
        global_batch=global_batch,
        rank=rank,
        world=world,
        start=start,
        seed=seed,
        workers=workers,
    )


class ValidationBatches:
    """Every sample once, in order, over all ranks; each rank has the same number of batches.

    Batches carry `valid` bool[b]: false where a sample only fills up the last batch so that all
    ranks' are of one size. On one rank all rows are valid.
    """

    def __init__(self, data: Data, *, batch: int, rank: int, world: int, workers: int) -> None:
        if batch < 1:
            raise ValueError(f"the validation batch is {batch}; set it to 1 or more samples")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} does not exist; ranks count from 0")
        self.data = data
        self.batch = batch
        self.rank = rank
        self.world = world
        self.workers = workers

    def __len__(self) -> int:
        return -(-len(self.data) // (self.batch * self.world))

    def rows(self, step: int) -> Rows:
        """This rank's rows of global batch `step`; a position past the end fills up."""
        first = step * self.batch * self.world
        rest = min(self.batch * self.world, len(self.data) - first)
        count = -(-rest // self.world)
        positions = np.arange(first + self.rank * count, first + (self.rank + 1) * count)
        return Rows(np.minimum(positions, len(self.data) - 1), positions, seed=0)

    def __iter__(self) -> Iterator[Any]:
        batches = _read(self.data, _Steps(self, len(self)), self.workers)
        for step, batch in enumerate(batches):
            positions = torch.from_numpy(self.rows(step).positions)
            yield {**batch, "valid": positions < len(self.data)}


def validation_batches(
    data: Data, *, batch: int, rank: int, world: int, workers: int
) -> ValidationBatches:
    """This rank's share of the whole data set, in batches of at most `batch` samples."""
    return ValidationBatches(data, batch=batch, rank=rank, world=world, workers=workers)


def all_pictures(
    data: Data,
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world: int = 1,
    batch: int = 64,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Validation batches of pictures, their bytes brought to `device` and normalised there."""
    for found in validation_batches(data, batch=batch, rank=rank, world=world, workers=workers):
        yield {**found, "image": normalise(found["image"].to(device))}


class OrderedBatches:
    """Some samples in their order, each once; the last batch may be smaller."""

    def __init__(self, data: Data, samples: range, *, batch: int, workers: int) -> None:
        self.data = data
        self.samples = samples
        self.batch = batch
        self.workers = workers

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch)

    def rows(self, step: int) -> Rows:
        """The rows of batch `step`."""
        numbers = np.asarray(self.samples[step * self.batch : (step + 1) * self.batch], np.int64)
        return Rows(numbers, numbers, seed=0)

    def __iter__(self) -> Iterator[Any]:
        return _read(self.data, _Steps(self, len(self)), self.workers)


@runtime_checkable
class _Plan(Protocol):
    data: Data

    def rows(self, step: int) -> Rows: ...


class _Steps:
    """The sampler: step numbers are all that a worker is sent."""

    def __init__(self, plan: _Plan, count: int | None) -> None:
        self.plan = plan
        self.count = count

    def __iter__(self) -> Iterator[int]:
        step = 0
        while self.count is None or step < self.count:
            yield step
            step += 1


class _Reader(Dataset[Any]):
    """Runs in the workers. An error travels as a value, so that the user sees one line of it."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan

    def __getitem__(self, step: int) -> Any:
        try:
            return self.plan.data.read(self.plan.rows(step))
        except DataError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _read(data: Data, steps: _Steps, workers: int) -> Iterator[Any]:
    """Batches in order, faults counted; raises DataError where training cannot go on."""
    loader = DataLoader(
        _Reader(steps.plan),
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        timeout=data.reading.timeout if workers else 0,
    )
    losses = _Losses(data.reading.tolerate)
    for step, answer in enumerate(_explained(iter(loader), steps.plan, data.reading.timeout)):
        if isinstance(answer, DataError):
            raise answer
        batch, faults = answer
        losses.count(len(steps.plan.rows(step).samples), faults)
        yield batch


def _explained(batches: Iterator[Any], plan: _Plan, timeout: float) -> Iterator[Any]:
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
