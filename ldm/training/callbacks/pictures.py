"""Looking at the model while it trains: sample grids with metrics, and reconstructions."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.diffusion import Guidance, Sampler
from ldm.generate import TextToImage, grid, save_png
from ldm.metrics import MetricGroup
from ldm.training.loggers import albums
from ldm.types import Image, Latent

_CHANNELS = 16  # of a latent that are shown


class _EverySteps(L.Callback):
    """Calls `look` every `every` optimizer steps, and after the last."""

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self.folder = every, folder
        self._looked = -1

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """The step where it begins was looked at when it was trained; before the first there is
        nothing to see."""
        self._looked = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """After the step that `every` divides."""
        if trainer.global_step % self.every == 0 and trainer.global_step != self._looked:
            self._looked = trainer.global_step
            self.look(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """The finished model, unless it has just been looked at."""
        if trainer.global_step != self._looked:
            self.look(trainer, module)

    def look(self, trainer: L.Trainer, module: Any) -> None:
        """What is done; every rank calls it."""
        raise NotImplementedError

    def show(self, trainer: L.Trainer, images: list[Tensor], columns: int, name: str) -> None:
        """A grid into TensorBoard and, as PNG, into the run's samples."""
        if not trainer.is_global_zero:
            return
        picture = grid(images, columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_png(
            picture,
            self.folder / f"{name}-{trainer.global_step:08d}.png",
            {"step": trainer.global_step},
        )
        for album in albums(trainer):
            album.show(name, picture, trainer.global_step)

    def record(self, trainer: L.Trainer, about: str, *groups: MetricGroup) -> None:
        """The metrics' values over all ranks, into every logger, and once their full names into
        metrics.json. A metric that failed is told of and left out: it never ends a training."""
        values: dict[str, float] = {}
        names: dict[str, str] = {}
        for group in groups:
            for name, value in group.compute().items():
                if isinstance(value, float):
                    values[f"{about}/{name}"] = value
                else:
                    rank_zero_warn(f"{about}/{name} was not measured: {value}")
            names |= {f"{about}/{name}": str(metric.name) for name, metric in group.metrics.items()}
        if trainer.is_global_zero and groups:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "metrics.json").write_text(json.dumps(names, indent=1) + "\n")
        for logger in trainer.loggers if values else []:
            logger.log_metrics(values, trainer.global_step)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in values.items()})


class SampleQuality(_EverySteps):
    """Pictures for fixed prompts and seeds from the averaged weights, and their metrics.

    The grid shows `grid_prompts`, one seed each. The metrics see one picture for each of
    `prompts`; ranks share them evenly. Nothing is drawn from a global generator, so a run with
    this callback has the same weights as one without.
    """

    def __init__(
        self,
        *,
        every: int,
        folder: Path,
        grid_prompts: Sequence[str],
        prompts: Sequence[str],
        metrics: MetricGroup,
        sampler: Sampler,
        guidance: float,
        image_size: int,
        batch_size: int = 64,
        precision: torch.dtype | None = None,
        manner: Guidance,
    ) -> None:
        super().__init__(every, folder)
        self.grid_prompts, self.prompts = list(grid_prompts), list(prompts)
        self.metrics = metrics
        self.sampler, self.guidance, self.image_size = sampler, guidance, image_size
        self.batch_size, self.precision, self.manner = batch_size, precision, manner

    def look(self, trainer: L.Trainer, module: Any) -> None:
        """Draw, show, measure."""
        generate = TextToImage(
            module.denoiser(),
            self.sampler,
            module.codec,
            module.captions,
            self.image_size,
            self.guidance,
            self.precision,
            self.manner,
        )
        self.metrics.reset(module.device)
        try:
            self._draw(trainer, generate)
            self._measure(trainer, generate)
        except Exception as error:  # such as no memory for so many pictures at once
            self.metrics.fail(error)
        self.record(trainer, "sample", self.metrics)

    def _draw(self, trainer: L.Trainer, generate: TextToImage) -> None:
        seeds = range(len(self.grid_prompts))
        shown = [
            picture
            for batch in generate.batches(self.grid_prompts, seeds, self.batch_size)
            for picture in batch
        ]
        self.show(trainer, shown, 8, "samples")
        text = "\n".join(f"{i}. {prompt}" for i, prompt in enumerate(self.grid_prompts, 1))
        for album in albums(trainer):
            album.tell("samples/prompts", text, trainer.global_step)

    def _measure(self, trainer: L.Trainer, generate: TextToImage) -> None:
        """Every rank draws equally many pictures in equally many batches, because under FSDP each
        pass of the network is an exchange; what only fills up is not measured."""
        count, world = len(self.prompts), trainer.world_size
        mine = range(trainer.global_rank, -(-count // world) * world, world)
        prompts = [self.prompts[i % count] for i in mine]
        for start, images in zip(
            range(0, len(mine), self.batch_size),
            generate.batches(prompts, mine, self.batch_size),
            strict=True,
        ):
            real = sum(i < count for i in mine[start : start + self.batch_size])
            if real:
                self.metrics.update(images[:real], prompts[start : start + real])


class Reconstructions(_EverySteps):
    """Pictures above their reconstructions from the averaged weights, above |difference|; their
    latents, a row a picture and a column a channel; and what metrics say of the reconstructions of
    every picture.

    `pictures(rank, world)` gives a rank's share afresh each time: batches with `image` and `valid`,
    equally many in every rank. `metrics` see reconstructions, `pairs` their originals too.
    """

    def __init__(
        self,
        *,
        every: int,
        folder: Path,
        pictures: Callable[[int, int], Iterable[Mapping[str, Any]]],
        shown: int,
        metrics: MetricGroup,
        pairs: MetricGroup,
    ) -> None:
        super().__init__(every, folder)
        self.pictures, self.shown = pictures, shown
        self.metrics, self.pairs = metrics, pairs

    def look(self, trainer: L.Trainer, module: Any) -> None:
        """Reconstruct, show, measure."""
        self.metrics.reset(module.device)
        self.pairs.reset(module.device)
        try:
            self._measure(trainer, module)
        except Exception as error:  # such as no memory for so many pictures at once
            self.metrics.fail(error)
            self.pairs.fail(error)
        self.record(trainer, "reconstruction", self.metrics, self.pairs)

    def _measure(self, trainer: L.Trainer, module: Any) -> None:
        share = self.pictures(trainer.global_rank, trainer.world_size)
        for number, batch in enumerate(share):
            images, real = batch["image"].to(module.device), batch["valid"]
            made = module.reconstruct(images).float()
            if number == 0:  # the first picture of all is on rank 0, which shows it
                self._compare(trainer, images[: self.shown], made[: self.shown])
                channels = latent_pictures(module.encode(images[: self.shown]), images.shape[2:])
                self.show(trainer, channels, len(channels) // len(images[: self.shown]), "latents")
            if real.any():
                self.metrics.update(made[real], [""] * int(real.sum()))
                self.pairs.update(made[real], images[real])

    def _compare(self, trainer: L.Trainer, images: Image, made: Image) -> None:
        difference = (images - made).abs() - 1
        self.show(trainer, [*images, *made, *difference], len(images), "reconstructions")


def latent_pictures(latent: Latent, size: Sequence[int]) -> list[Tensor]:
    """The first 16 channels of each latent as grey pictures `[3 H W]` of `size`, sample by sample;
    a channel's mean over all samples is grey, three deviations above it white."""
    latent = latent[:, :_CHANNELS]
    std, mean = torch.std_mean(latent, dim=(0, 2, 3), keepdim=True)
    shades = ((latent - mean) / (3 * std + 1e-8)).clamp(-1, 1)
    shades = interpolate(shades, size=tuple(size), mode="nearest").flatten(0, 1)
    return list(shades[:, None].expand(-1, 3, -1, -1))
