"""The Lightning data module: this rank's part of each global batch, normalised on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch

from ldm.data import ShardData, normalise, training_batches, validation_batches
from ldm.data.batches import Data, ValidationBatches
from ldm.data.order import Rows
from ldm.types import Draws


class PictureDataModule(L.LightningDataModule):
    """Batches of pictures from shards.

    `global_batch` pictures make an optimizer step whatever the number of devices; each device
    takes `global_batch / devices` of them in `accumulate` turns. A training batch carries
    `position`: the place of its first row in the stream of all samples ever drawn, from which
    both its step and its rows of the global batch follow. `overfit` is for trying out: training
    sees the first so many samples only.
    """

    def __init__(
        self,
        train: Data,
        val: ShardData,
        *,
        global_batch: int,
        accumulate: int,
        seed: int,
        workers: int = 0,
        overfit: int | None = None,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.global_batch, self.accumulate = global_batch, accumulate
        self.seed, self.workers, self.overfit = seed, workers, overfit

    def device_batch(self, devices: int) -> int:
        """Pictures a device takes at once; ValueError when the global batch does not divide."""
        device_batch, rest = divmod(self.global_batch, devices * self.accumulate)
        if rest:
            raise ValueError(
                f"global_batch={self.global_batch} does not divide by {devices} devices x "
                f"accumulate={self.accumulate}; set global_batch to a multiple of "
                f"{devices * self.accumulate}"
            )
        return device_batch

    def train_dataloader(self) -> "_Positioned":
        """An endless stream that begins where the trainer's step says."""
        rank, world = self._place()
        start = (self.trainer.global_step if self.trainer else 0) * self.global_batch
        batches = training_batches(
            self.train,
            global_batch=self.global_batch // self.accumulate,
            rank=rank,
            world=world,
            start=start,
            seed=self.seed,
            workers=self.workers,
        )
        if self.overfit is not None:
            batches.order = _First(min(self.overfit, len(self.train)), self.seed)
        return _Positioned(
            batches,
            start + rank * self.device_batch(world),
            self.global_batch // self.accumulate,
        )

    def val_dataloader(self) -> "_Numbered":
        """Every validation picture once, in order, over all ranks; `valid` is false where a row
        only fills up, and `position` of `of` is the first row's place in the set."""
        rank, world = self._place()
        batches = validation_batches(
            self.val,
            batch=self.device_batch(world),
            rank=rank,
            world=world,
            workers=self.workers,
        )
        return _Numbered(batches, len(self.val))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to [-1, 1], on the device."""
        if "image" not in batch:  # latents
            return batch
        return {**batch, "image": normalise(batch["image"])}

    def draws(self, position: int, rows: int, device: torch.device) -> Draws:
        """The random numbers of the rows that begin at this place of the stream."""
        step, first = divmod(position, self.global_batch)
        return Draws(self.seed, step, range(first, first + rows), self.global_batch, device)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


@dataclass(frozen=True)
class _First:
    """The order of the first `count` samples, one after the other without end."""

    count: int
    seed: int

    def rows(self, position: int, count: int) -> Rows:
        """Positions as in any order."""
        positions = np.arange(position, position + count)
        return Rows(positions % self.count, positions, self.seed)


class _Positioned:
    """Adds to each batch the place of its first row."""

    def __init__(self, batches: Any, first: int, stride: int) -> None:
        self.batches, self.first, self.stride = batches, first, stride

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(self.batches):
            yield {**batch, "position": self.first + number * self.stride}


class _Numbered:
    """Adds to each validation batch its place in the set."""

    def __init__(self, batches: ValidationBatches, count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(self.batches):
            first = int(self.batches.rows(step).positions[0])
            yield {**batch, "position": first, "of": self.count}


def draws_of(module: L.LightningModule, batch: dict[str, Any]) -> Draws:
    """The random numbers of a training batch, wherever and whenever it is computed."""
    data: PictureDataModule = module.trainer.datamodule  # type: ignore[attr-defined]
    return data.draws(batch["position"], len(batch["key"]), module.device)
