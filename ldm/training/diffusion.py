"""Training of the denoising network in the latent space of a frozen autoencoder."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldm.data import condition_of, posterior_of
from ldm.data.latents import LatentBatch
from ldm.diffusion import Denoiser, Objective
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.captions_sized import of_sizes
from ldm.frozen.codec import LatentCodec
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
    the average of a short run is not held back by its first steps. With `tell_sizes`, which goes
    with `SizedCaptions`, the network is told each picture's own size and crop (SDXL, 2.2).
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
        on_nonfinite: str = "skip",
        tell_sizes: bool = False,
    ) -> None:
        super().__init__(optimizer, lr_schedule, on_nonfinite)
        if not 0 <= condition_dropout < 1:
            raise ValueError(
                f"module.condition_dropout={condition_dropout} is a probability; set it to 0.1, "
                "or to 0 for no classifier-free guidance"
            )
        self.network: Any = network
        self.average: Any = twin(network)
        self.objective = objective
        self.codec = codec
        self.captions = captions
        self.condition_dropout = condition_dropout
        self.ema_decay = ema_decay
        self.tell_sizes = tell_sizes

    def setup(self, stage: str) -> None:
        """Put what is frozen where the training runs."""
        device = self.trainer.strategy.root_device  # self.device is not moved yet
        self.codec.to(device)
        self.captions.to(device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted loss of one batch."""
        draws = draws_of(self, batch)
        if "mean" in batch:
            latent = self.codec.latent_of(posterior_of(cast(LatentBatch, batch)), draws)
        else:
            latent = self.codec.encode(batch["image"], draws)
        condition = self._with_dropout(batch, draws)
        losses = self.objective(self.network, latent, condition, draws)
        self.nonfinite.watch(batch["key"], losses)
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
        condition = self._sized(self.captions(batch["caption"]), batch)
        latent = self.codec.encode(image)
        loss = self.objective(self.average, latent, condition, draws)[batch["valid"]]
        self.log("val/loss", loss.mean(), sync_dist=True, batch_size=len(loss))

    def denoiser(self) -> Denoiser:
        """The averaged network, ready for a sampler."""
        return self.objective.denoiser(self.average)

    def _with_dropout(self, batch: dict[str, Any], draws: Draws) -> Condition:
        """The batch's text states, or what the text encoder says of its captions; of the empty
        caption in the rows that are dropped."""
        keep = draws.uniform((), "condition dropout") >= self.condition_dropout
        condition = condition_of(cast(LatentBatch, batch))
        if condition is not None:
            return condition.where(keep, _repeated(batch["null_text"], len(keep)))
        condition = self.captions(batch["caption"])
        null = self.captions([""] * len(condition))
        return self._sized(condition.where(keep, null), batch)

    def _sized(self, condition: Condition, batch: dict[str, Any]) -> Condition:
        """The condition is told how large each picture was and what was cut out of it, in the rows
        whose caption is dropped too."""
        if not self.tell_sizes:
            return condition
        shape = torch.tensor(batch["image"].shape[2:], device=condition.tokens.device)
        parts = (batch["original"], batch["corner"], shape.expand(len(condition), 2))
        return of_sizes(condition, torch.cat(parts, dim=1).float())


def _repeated(one: Condition, rows: int) -> Condition:
    pooled = None if one.pooled is None else one.pooled.expand(rows, -1)
    return Condition(one.tokens.expand(rows, -1, -1), one.mask.expand(rows, -1), pooled)
