"""Looking at the model while it trains: sample grids with metrics, and reconstructions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchvision.transforms.functional import pil_to_tensor

from ldm.diffusion import Sampler
from ldm.generate import TextToImage, grid, save_png
from ldm.types import Image


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
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, pil_to_tensor(picture), trainer.global_step)

    def record(self, trainer: L.Trainer, group: str, metrics: Mapping[str, Metric]) -> None:
        """The metrics' values over all ranks, into every logger. A metric that fails is told of
        and left out: it never ends a training."""
        values = {}
        for name, metric in metrics.items():
            try:
                values[f"{group}/{name}"] = metric.compute()
            except ValueError as error:
                rank_zero_warn(f"{group}/{name} was not measured: {error}")
        for logger in trainer.loggers:
            logger.log_metrics({k: float(v) for k, v in values.items()}, trainer.global_step)
        trainer.callback_metrics.update(values)


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
        metrics: Mapping[str, Metric],
        sampler: Sampler,
        guidance: float,
        image_size: int,
        batch_size: int = 64,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(every, folder)
        self.grid_prompts, self.prompts = list(grid_prompts), list(prompts)
        self.metrics = dict(metrics)
        self.sampler, self.guidance, self.image_size = sampler, guidance, image_size
        self.batch_size, self.precision = batch_size, precision

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
        )
        seeds = range(len(self.grid_prompts))
        shown = [
            picture
            for batch in generate.batches(self.grid_prompts, seeds, self.batch_size)
            for picture in batch
        ]
        self.show(trainer, shown, 8, "samples")
        self._tell_prompts(trainer)
        self._measure(trainer, module, generate)

    def _tell_prompts(self, trainer: L.Trainer) -> None:
        text = "\n".join(f"{i}. {prompt}" for i, prompt in enumerate(self.grid_prompts, 1))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_text("samples/prompts", text, trainer.global_step)

    def _measure(self, trainer: L.Trainer, module: Any, generate: TextToImage) -> None:
        # As many on every rank, or a network in parts would wait for ever for the one that is done.
        count, world = len(self.prompts), trainer.world_size
        places = [trainer.global_rank + turn * world for turn in range(-(-count // world))]
        prompts = [self.prompts[place % count] for place in places]
        for metric in self.metrics.values():
            metric.reset()
        for start, images in zip(
            range(0, len(places), self.batch_size),
            generate.batches(prompts, places, self.batch_size),
            strict=True,
        ):
            own = sum(place < count for place in places[start : start + self.batch_size])
            for metric in self.metrics.values() if own else []:
                metric.to(images.device).update(images[:own], prompts[start : start + own])
        self.record(trainer, "sample", self.metrics)


class Reconstructions(_EverySteps):
    """Pictures above their reconstructions from the averaged weights, above |difference|; the
    metrics see the reconstructions of every picture, shared evenly by the ranks.

    `pictures` gives batches of images afresh each time it is called.
    """

    def __init__(
        self,
        *,
        every: int,
        folder: Path,
        pictures: Callable[[], Iterable[Image]],
        shown: int,
        metrics: Mapping[str, Metric],
    ) -> None:
        super().__init__(every, folder)
        self.pictures, self.shown, self.metrics = pictures, shown, dict(metrics)

    def look(self, trainer: L.Trainer, module: Any) -> None:
        """Reconstruct, show, measure."""
        for metric in self.metrics.values():
            metric.reset()
        for number, (batch, own) in enumerate(self._share(trainer.global_rank, trainer.world_size)):
            images = batch.to(module.device)
            made = module.reconstruct(images).float()
            if number == 0:  # the first picture of all is on rank 0, which shows it
                self._compare(trainer, images[: self.shown], made[: self.shown])
            for metric in self.metrics.values() if own else []:
                metric.to(made.device).update(made, [""] * len(made))
        self.record(trainer, "reconstruction", self.metrics)

    def _share(self, rank: int, world: int) -> Iterator[tuple[Image, bool]]:
        """This rank's batches, and as many on every rank: the last may be another's (False), or a
        network in parts would wait for ever for the rank that is done."""
        batch, own, number = None, False, -1
        for number, each in enumerate(self.pictures()):
            if batch is None or number % world == rank:
                batch, own = each, number % world == rank
            if number % world == world - 1:
                yield batch, own
                batch, own = None, False
        if batch is not None:
            yield batch, own

    def _compare(self, trainer: L.Trainer, images: Image, made: Image) -> None:
        difference = (images - made).abs() - 1
        self.show(trainer, [*images, *made, *difference], len(images), "reconstructions")
