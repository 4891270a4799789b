"""Small trainings that the tests share: pictures in memory, fed as the data module feeds them."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ldm.types import Draws


class Pictures(L.LightningDataModule):
    """The same global batches for any number of ranks and any accumulation: global batch s holds
    pictures s*n .. s*n+n-1, dealt to turns first, then to ranks."""

    def __init__(
        self, images: Tensor, global_batch: int, accumulate: int = 1, seed: int = 0, done: int = 0
    ):
        super().__init__()
        self.done = done  # global batches that an earlier part of the training has seen
        self.images, self.global_batch = images, global_batch
        self.accumulate, self.seed = accumulate, seed

    def draws(self, position: int, rows: int, device: torch.device) -> Draws:
        step, first = divmod(position, self.global_batch)
        return Draws(self.seed, step, range(first, first + rows), self.global_batch, device)

    def train_dataloader(self) -> "_Stream":
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        turn = self.global_batch // self.accumulate
        return _Stream(self.images, turn, rank, world, self.done * self.global_batch)

    def val_dataloader(self) -> "_Once":
        return _Once(self.images[:8])


class _Stream:
    def __init__(self, images: Tensor, turn: int, rank: int, world: int, start: int) -> None:
        self.images, self.turn, self.rank, self.world = images, turn, rank, world
        self.start = start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = self.turn // self.world
        position = self.start + self.rank * size
        while True:
            where = [(position + i) % len(self.images) for i in range(size)]
            yield batch_of(self.images[where], position)
            position += self.turn


class _Once:
    """Two batches of unequal size, the second filled up with a picture that does not count."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield validated(self.images[:5], 0, 5)
        yield validated(torch.cat([self.images[5:], -self.images[:1]]), 5, len(self.images) - 5)


def validated(images: Tensor, position: int, count: int) -> dict[str, Any]:
    """A batch of validation, of which the first `count` count."""
    return batch_of(images, position) | {"valid": torch.arange(len(images)) < count}


def batch_of(images: Tensor, position: int) -> dict[str, Any]:
    keys = [f"picture-{position + i}" for i in range(len(images))]
    return {"image": images, "caption": [""] * len(images), "key": keys, "position": position}


def trainer(steps: int, callbacks: Sequence[L.Callback] = (), **settings: Any) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=settings.pop("devices", 1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=settings.pop("limit_val_batches", 0),
        callbacks=list(callbacks),
        **settings,
    )


def pictures(count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth random pictures in [-1, 1]: coarse noise, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").to(dtype)
