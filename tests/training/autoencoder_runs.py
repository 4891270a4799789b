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

    def __init__(self, images: Tensor, global_batch: int, accumulate: int = 1, seed: int = 0):
        super().__init__()
        self.images, self.global_batch = images, global_batch
        self.accumulate, self.seed = accumulate, seed

    def draws(self, position: int, rows: int, device: torch.device) -> Draws:
        step, first = divmod(position, self.global_batch)
        return Draws(self.seed, step, range(first, first + rows), self.global_batch, device)

    def train_dataloader(self) -> "_Stream":
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        return _Stream(self.images, self.global_batch // self.accumulate, rank, world)

    def val_dataloader(self) -> list[dict[str, Any]]:
        return [batch_of(self.images[:8], 0)]


class _Stream:
    def __init__(self, images: Tensor, turn: int, rank: int, world: int) -> None:
        self.images, self.turn, self.rank, self.world = images, turn, rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = self.turn // self.world
        position = self.rank * size
        while True:
            where = [(position + i) % len(self.images) for i in range(size)]
            yield batch_of(self.images[where], position)
            position += self.turn


def batch_of(images: Tensor, position: int) -> dict[str, Any]:
    keys = [f"picture-{position + i}" for i in range(len(images))]
    return {"image": images, "caption": [""] * len(images), "key": keys, "position": position}


def trainer(steps: int, callbacks: Sequence[L.Callback] = (), **settings: Any) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
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
