"""Batches for one rank: endless and resumable for training, exact and ordered for validation."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ldm.data.loading import Data, loaded
from ldm.data.order import Rows


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

    @property
    def stride(self) -> int:
        """Samples in a batch of all ranks."""
        return self.global_batch

    def rows(self, step: int) -> Rows:
        """This rank's rows of the batch that is `step` batches behind the start."""
        count = self.global_batch // self.world
        first = self.start + step * self.global_batch + self.rank * count
        return self.order.rows(first, count)

    def __iter__(self) -> Iterator[Any]:
        return loaded(self, None, self.workers)


def training_batches(
    data: Data,
    *,
    global_batch: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    seed: int = 0,
    workers: int = 0,
) -> TrainingBatches:
    """This rank's batches without end, after `start` samples consumed by all ranks together: of
    pictures a `PictureBatch` each, of latents a `LatentBatch`.

    Equal for any number of workers; the ranks' batches put together are equal for any `world`.
    `start` is all that a resumed training needs.
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
    """Every sample once, in order, over all ranks; each rank has the same number of batches. Data
    of several shapes comes shape by shape, since a batch has one.

    Batches carry `valid` bool[b]: false where a sample only fills up the last batch of a shape so
    that all ranks' are of one size. On one rank all rows are valid.
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
        self._shaped = data.shaped()
        sizes = [len(shaped.samples) for shaped in self._shaped]
        self._firsts = np.cumsum([0, *sizes])  # position of each shape's first sample
        self._steps = np.cumsum([0, *(-(-size // self.stride) for size in sizes)])  # and its step

    def __len__(self) -> int:
        return int(self._steps[-1])

    @property
    def stride(self) -> int:
        """Samples in a batch of all ranks."""
        return self.batch * self.world

    def rows(self, step: int) -> Rows:
        """This rank's rows of global batch `step`; what is past a shape's end fills up."""
        return self._rows(step)[0]

    def _rows(self, step: int) -> tuple[Rows, NDArray[np.bool_]]:
        """And which of them only they hold."""
        # What is fetched ahead asks for steps behind the last one: they hold nothing.
        which = min(int(np.searchsorted(self._steps, step, side="right")), len(self._shaped)) - 1
        shape, samples = self._shaped[which]
        first = (step - int(self._steps[which])) * self.stride
        here = np.asarray(samples[first : first + self.stride], np.int64)
        count = -(-len(here) // self.world)
        places = np.arange(self.rank * count, (self.rank + 1) * count)
        own = here[np.minimum(places, len(here) - 1)]
        positions = self._firsts[which] + first + places
        return Rows(own, positions, seed=0, shape=shape), places < len(here)

    def __iter__(self) -> Iterator[Any]:
        batches = loaded(self, len(self), self.workers)
        for step, batch in enumerate(batches):
            yield {**batch, "valid": torch.from_numpy(self._rows(step)[1])}


def validation_batches(
    data: Data, *, batch: int, rank: int = 0, world: int = 1, workers: int = 0
) -> ValidationBatches:
    """This rank's share of the whole data set, in order, in batches of at most `batch` samples;
    beside what training batches hold, `valid` (see `ValidationBatches`)."""
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


def valid_pictures(batches: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
    """The pictures of validation batches, `[b 3 H W]`, without the rows that only fill up; nothing
    for a batch that has no others."""
    for batch in batches:
        images = batch["image"]
        images = images[batch["valid"].to(images.device)]
        if len(images):
            yield images


class OrderedBatches:
    """Some samples in their order, each once; the last batch may be smaller."""

    def __init__(self, data: Data, samples: range, *, batch: int, workers: int) -> None:
        self.data = data
        self.samples = samples
        self.batch = batch
        self.workers = workers

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch)

    @property
    def stride(self) -> int:
        """Samples in a batch."""
        return self.batch

    def rows(self, step: int) -> Rows:
        """The rows of batch `step`."""
        numbers = np.asarray(self.samples[step * self.batch : (step + 1) * self.batch], np.int64)
        return Rows(numbers, numbers, seed=0)

    def __iter__(self) -> Iterator[Any]:
        return loaded(self, len(self), self.workers)
