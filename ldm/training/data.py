"""The Lightning data module: this rank's part of each global batch, normalised on the device."""

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch

from ldm.data import ShardData, normalise, training_batches, validation_batches
from ldm.data.batches import TrainingBatches, ValidationBatches
from ldm.data.loading import Data
from ldm.data.order import Rows
from ldm.types import Condition, Draws


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
        self._null_text = train.null_text()

    def setup(self, stage: str) -> None:
        """Refuse, on all ranks at once, what only shows when they are compared."""
        rank, world = self._place()
        if world > 1:
            refuse_different_data(self._seen(rank, world))

    def _seen(self, rank: int, world: int) -> list["Seen"]:
        """What each rank would train on."""
        first = self._batches(rank, world, 0).rows(0)
        own = Seen(
            socket.gethostname(),
            {"data.train": self.train.content_hash, "data.val": self.val.content_hash},
            first.positions.tolist(),
        )
        seen: list[Any] = [None] * world
        torch.distributed.all_gather_object(seen, own)
        return seen

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
        return _Positioned(
            self._batches(rank, world, start),
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
        """Bytes to [-1, 1], on the device; text states get those of the empty caption."""
        if "tokens" in batch and self._null_text is not None:
            self._null_text = moved(self._null_text, batch["tokens"].device)
            return {**batch, "null_text": self._null_text}
        if "image" not in batch:  # latents
            return batch
        return {**batch, "image": normalise(batch["image"])}

    def draws(self, position: int, rows: int, device: torch.device) -> Draws:
        """The random numbers of the rows that begin at this place of the stream."""
        step, first = divmod(position, self.global_batch)
        return Draws(self.seed, step, range(first, first + rows), self.global_batch, device)

    def _batches(self, rank: int, world: int, start: int) -> TrainingBatches:
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
        return batches

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class Seen(NamedTuple):
    """What one rank sees: where it runs, the hashes of its data, the first positions it reads."""

    host: str
    hashes: dict[str, str]
    positions: list[int]


def refuse_different_data(seen: Sequence[Seen]) -> None:
    """ValueError where ranks have other data than rank 0, or two of them would read the same."""
    for rank, other in enumerate(seen):
        for key, wanted in seen[0].hashes.items():
            if other.hashes[key] != wanted:
                raise ValueError(
                    f"{key}: rank {rank} on {other.host} has other data than rank 0 on "
                    f"{seen[0].host} (hashes {other.hashes[key][:12]} and {wanted[:12]}); copy the "
                    "same shards and indexes to every machine"
                )
    taken: dict[int, int] = {}
    for rank, other in enumerate(seen):
        for position in other.positions:
            if taken.setdefault(position, rank) != rank:
                raise ValueError(
                    f"ranks {taken[position]} and {rank} (on {other.host}) would read the same "
                    "samples; every process must be told its own RANK by whatever starts it"
                )


def moved(condition: Condition, device: torch.device) -> Condition:
    """The condition on a device."""
    pooled = None if condition.pooled is None else condition.pooled.to(device)
    return Condition(condition.tokens.to(device), condition.mask.to(device), pooled)


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
