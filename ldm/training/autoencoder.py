"""Training of the autoencoder: reconstruction, and an adversary that joins later.

Both networks share one optimizer and one backward pass. The critic's weights are frozen where it
judges for the autoencoder, the reconstruction is detached where the critic learns; so the gradients
are those of two separate losses, and a step stays one step to Lightning.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldm import ranks
from ldm.frozen import latent_statistics
from ldm.models.autoencoder import Autoencoder
from ldm.models.autoencoder_losses import ReconstructionLoss
from ldm.models.autoencoder_regularisers import Alignment, Equivariance
from ldm.models.critic_loss import CriticLoss
from ldm.models.layers import at_least_float32
from ldm.training.autoencoder_watched import Watched
from ldm.training.data import draws_of
from ldm.training.ema import follow, gradual_decay, twin
from ldm.training.module import OneOptimizer
from ldm.types import Image, Latent, Posterior

__all__ = ["AutoencoderModule", "latent_statistics"]


class AutoencoderModule(OneOptimizer):
    """The first stage. A checkpoint's top names are `network`, `average`, and `critic` and
    `alignment` where there are such.

    With `freeze_encoder` only the decoder is trained (a codebook is a part of it): latents, their
    statistics and their fingerprint stay what they are. `on_nonfinite` is as in `NonFinitePolicy`.
    """

    steps = (*OneOptimizer.steps, "encode", "reconstruct")

    def __init__(
        self,
        autoencoder: Autoencoder,
        loss: ReconstructionLoss,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler],
        critic: CriticLoss | None = None,
        alignment: Alignment | None = None,
        equivariance: Equivariance | None = None,
        ema_decay: float = 0.999,
        freeze_encoder: bool = False,
        on_nonfinite: str = "stop",
    ) -> None:
        super().__init__(optimizer, lr_schedule, on_nonfinite)
        self.network = autoencoder
        self.average = twin(autoencoder)
        self.critic = critic
        self.alignment = alignment
        self.equivariance = equivariance
        self.loss = loss
        self.ema_decay = ema_decay
        self.freeze_encoder = freeze_encoder
        self.watched = Watched(autoencoder, perceptual=loss.perceptual is not None)
        if freeze_encoder:
            if alignment is not None:
                raise ValueError(
                    "module.alignment moves the encoder, which module.freeze_encoder=true keeps as "
                    "it is: set one of them"
                )
            for part in autoencoder.encoding():
                part.requires_grad_(False).eval()  # Lightning leaves modes as they are

    def setup(self, stage: str) -> None:
        """Put what is frozen where the training runs."""
        device = self.trainer.strategy.root_device  # self.device is not moved yet
        self.loss.to(device)
        if self.alignment is not None:
            self.alignment.features.to(device)

    def train(self, mode: bool = True) -> "AutoencoderModule":
        """As of any module, but the average stays in evaluation, and so does a frozen encoder."""
        super().train(mode)
        self.average.eval()
        for part in self.network.encoding() if self.freeze_encoder else []:
            part.eval()
        return self

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The sum of the autoencoder's loss and, once it has joined, the critic's."""
        image, draws = batch["image"], draws_of(self, batch)
        posterior = self.network.encode(image)
        noise = draws.normal(posterior.mean.shape[1:], "posterior")
        latent, wanted = posterior.sample(noise), image
        if self.equivariance is not None:
            latent, wanted = self.equivariance(latent, image, draws)
        quantised = self.network.quantise(latent)
        reconstruction = self.network.expand(quantised.latent)
        terms = self.loss(reconstruction, wanted, posterior, encoded=image[0].numel())
        self._log_terms(terms)
        each = terms.total
        if self.alignment is not None:
            each = each + self._aligned(self.alignment, posterior, image, terms.reconstruction)
        self.nonfinite.watch(batch["key"], each)
        loss = each.mean()
        if quantised.penalty is not None:
            loss = loss + quantised.penalty
            self.log("train/codebook", quantised.penalty)
        loss = loss + self._adversarial(wanted, reconstruction, terms.reconstruction.mean())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A critic that has not joined has no gradient; a broken step reaches no weights."""
        if self.critic is not None and not self.critic.active(self.global_step):
            self.critic.zero_grad(set_to_none=True)
        super().on_before_optimizer_step(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow: once an optimizer step, not once a batch."""
        super().optimizer_step(*args, **kwargs)
        self.network.stepped()
        if self.critic is not None:
            self.critic.stepped()
        decay = gradual_decay(self.ema_decay, self.trainer.global_step)
        follow(self.average, self.network, decay)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The average's reconstructions against their pictures, and its latents."""
        image = batch["image"]
        posterior = self.average.encode(image)
        quantised = self.average.quantise(posterior.mean)
        made = self.average.expand(quantised.latent)
        terms = self.loss(made, image, posterior)
        self.watched.update(image, made, posterior, quantised, terms, batch["valid"])
        if self.critic is not None and self.critic.active(self.global_step):
            self.watched.judge(self.critic.opinion(image, made), batch["valid"])

    def on_validation_epoch_end(self) -> None:
        """Numbers over the whole set and all ranks."""
        for name, value in self.watched.compute().items():
            # They are of all ranks already; Lightning does not know it.
            self.log(f"val/{name}", value, prog_bar=name == "psnr", sync_dist=True)
        self.watched.reset()

    @torch.no_grad()
    def encode(self, images: Image) -> Latent:
        """The mean of the average's posterior, float32."""
        return self.average.encode(images).mean.float()

    @torch.no_grad()
    def reconstruct(self, images: Image) -> Image:
        """The average's reconstruction from the posterior's mean, in [-1, 1], float32."""
        latent = self.average.encode(images).mean
        return self.average.decode(latent).float().clamp(-1, 1)

    def _aligned(
        self,
        alignment: Alignment,
        posterior: Posterior,
        image: Image,
        kept: Float[Tensor, "b"],
    ) -> Float[Tensor, "b"]:
        """The alignment's term, weighted."""
        apart = alignment(posterior.mean, image)
        self.log("train/alignment", apart.mean())
        if not alignment.adaptive:
            return alignment.weight * apart
        scale = balance(kept.mean(), apart.mean(), self.network.latent_layer(), alignment.most)
        self.log("train/alignment_weight", scale)
        return alignment.weight * scale * apart

    def _adversarial(
        self, image: Image, reconstruction: Image, kept: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Both sides' terms, weighted; before the critic joins, a 0 that touches its weights, so
        that DDP finds them used."""
        critic = self.critic
        if critic is None:
            return torch.zeros_like(kept)
        if not critic.active(self.global_step):
            return sum((p.sum() * 0.0 for p in critic.parameters()), torch.zeros_like(kept))
        pressure = critic.pressure(self.global_step)
        verdict = critic.caught(image, reconstruction)
        self.log_dict(
            {
                "critic/loss": verdict.loss,
                **{f"critic/{k}": told.mean() for k, told in verdict.opinion._asdict().items()},
                "critic/pressure": pressure,
            }
        )
        if pressure == 0.0:
            return verdict.loss
        fooled = critic.fooled(reconstruction)
        if critic.adaptive:
            scale = balance(kept, fooled, self.network.last_layer(), critic.most)
            self.log("critic/adaptive_weight", scale)
            fooled = scale * fooled
        self.log("train/fooled", fooled)
        return pressure * fooled + verdict.loss

    def _log_terms(self, terms: Any) -> None:
        self.log_dict(
            {
                "train/pixel": terms.pixel.mean(),
                "train/edges": terms.edges.mean(),
                "train/perceptual": terms.perceptual.mean(),
                "train/kl": terms.kl.mean(),
            }
        )


def balance(
    kept: Float[Tensor, ""], other: Float[Tensor, ""], layer: Tensor, most: float
) -> Float[Tensor, ""]:
    """|gradient of kept| / |gradient of the other| at a layer's weight, in [0, most], detached
    (Esser et al. 2021, eq. 7); of the gradients over all ranks, so that every rank has the same."""
    slopes = [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (kept, other)]
    both = at_least_float32(torch.stack(slopes))
    ranks.add(both)  # a mean's factor would cancel in the ratio
    lengths = both.flatten(1).norm(dim=1)
    return (lengths[0] / lengths[1].clamp(min=1e-8)).clamp(max=most)
