"""Training of the denoising network in the latent space of a frozen autoencoder."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldm.data import condition_of, posterior_of
from ldm.data.latents import LatentBatch
from ldm.diffusion import Denoiser, LearnedUncertainty, Objective, TimeBins
from ldm.frozen import LatentCodec
from ldm.frozen.captions import CaptionEncoder
from ldm.metrics.means import PictureMean
from ldm.models import TokenAlignment
from ldm.training.conditioning import Conditioning
from ldm.training.data import draws_of
from ldm.training.ema import follow, gradual_decay, twin
from ldm.training.module import OneOptimizer
from ldm.types import Condition, Draws, Image

VALIDATION_SEED = 1  # validation always sees the same times and noises, whatever the run's seed


class LatentDiffusionModule(OneOptimizer):
    """The second stage: x_t from the codec's latents and known noise, a loss on what the network
    says of them, and an average of the network that follows it.

    With probability `condition_dropout` a row's caption is replaced by the empty one, which is
    what classifier-free guidance needs (Ho & Salimans 2022). `ema_decay` is reached gradually:
    the average of a short run is not held back by its first steps. `alignment` adds its loss to
    that of the objective. With `uncertainty` every time
    pulls on the network alike. `bins` gathers the loss by time, on the device.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        codec: LatentCodec,
        captions: CaptionEncoder,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler],
        condition_dropout: float = 0.1,
        ema_decay: float = 0.9999,
        conditioning: Conditioning | None = None,
        alignment: TokenAlignment | None = None,
        on_nonfinite: str = "skip",
        uncertainty: LearnedUncertainty | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule, on_nonfinite)
        if not 0 <= condition_dropout < 1:
            raise ValueError(
                f"module.condition_dropout={condition_dropout} is a probability; set it to 0.1, "
                "or to 0 for no classifier-free guidance"
            )
        self.network: Any = network
        self.average: Any = twin(network)
        self.uncertainty = uncertainty
        self.objective = objective
        self.codec = codec
        self.captions = captions
        self.condition_dropout = condition_dropout
        self.ema_decay = ema_decay
        self.conditioning = conditioning or Conditioning()
        self.conditioning.refuse_unfit(network, captions)
        self.alignment = alignment
        self.bins = TimeBins(torch.device("cpu"))
        self.val_loss = PictureMean()

    def setup(self, stage: str) -> None:
        """Put what is frozen where the training runs."""
        device = self.trainer.strategy.root_device  # self.device is not moved yet
        self.codec.to(device)
        self.captions.to(device)
        if self.alignment is not None:
            self.alignment.features.to(device)
        self.bins = TimeBins(device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted loss of one batch."""
        draws = draws_of(self, batch)
        if "mean" in batch:
            latent = self.codec.latent_of(posterior_of(cast(LatentBatch, batch)), draws)
        else:
            latent = self.codec.encode(batch["image"], draws)
        condition = self._with_dropout(batch, draws)
        condition = self.conditioning.masked(condition, self.network, latent, draws)
        with nullcontext() if self.alignment is None else self.alignment.watching(self.network):
            losses = self.objective(self.network, latent, condition, draws)
        if self.alignment is not None:
            losses = losses + self._aligned(batch)
        self.nonfinite.watch(batch["key"], losses)
        times = self.objective.draw_times(draws)
        self.bins.add(times, losses)
        if self.uncertainty is not None:
            losses = self.uncertainty(losses, times)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow: once an optimizer step, not once a batch."""
        super().optimizer_step(*args, **kwargs)
        decay = gradual_decay(self.ema_decay, self.trainer.global_step)
        follow(self.average, self.network, decay)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The average's loss at times and noises that are the same in every validation."""
        image: Image = batch["image"]
        rows = range(batch["position"], batch["position"] + len(image))
        draws = Draws(VALIDATION_SEED, 0, rows, batch["of"], image.device)
        condition = self.conditioning.told(self.captions, self.codec, batch, draws)
        latent = self.codec.encode(image)
        loss = self.objective(self.average, latent, condition, draws)[batch["valid"]]
        self.val_loss.update(loss)

    def on_validation_epoch_end(self) -> None:
        """The mean over all pictures; a rank's last batch may hold none."""
        # It is of all ranks already; Lightning does not know it.
        self.log("val/loss", self.val_loss.compute(), sync_dist=True)
        self.val_loss.reset()

    def denoiser(self) -> Denoiser:
        """The averaged network, ready for a sampler."""
        return self.objective.denoiser(self.average)

    def _aligned(self, batch: dict[str, Any]) -> Tensor:
        if "image" not in batch:
            raise ValueError(
                "module.alignment looks at pictures, and latent shards hold none: set data=shards"
            )
        assert self.alignment is not None
        losses: Tensor = self.alignment(batch["image"])
        self.log("train/alignment", losses.mean())
        return losses

    def _with_dropout(self, batch: dict[str, Any], draws: Draws) -> Condition:
        """What the batch's pictures are told of; in the rows that are dropped of the empty caption.
        Those keep their sizes and what stands beside the latent."""
        keep = draws.uniform((), "condition dropout") >= self.condition_dropout
        stored = condition_of(cast(LatentBatch, batch))
        if stored is not None:
            self.conditioning.refuse_stored()
            return stored.where(keep, _repeated(batch["null_text"], len(keep)))
        told = self.conditioning.told(self.captions, self.codec, batch, draws, dropping=True)
        silent = {**batch, "caption": [""] * len(told)}
        return told.where(keep, self.conditioning.told(self.captions, self.codec, silent, None))


def _repeated(one: Condition, rows: int) -> Condition:
    pooled = None if one.pooled is None else one.pooled.expand(rows, -1)
    return Condition(one.tokens.expand(rows, -1, -1), one.mask.expand(rows, -1), pooled)
