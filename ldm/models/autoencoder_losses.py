"""What an autoencoder is asked to keep: pixels at several scales, edges, features, and a latent
that stays near the standard Gaussian. Every loss is one number a picture, `[b]`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ldm.models.layers import Picture, at_least_float32
from ldm.models.perceptual import PerceptualDistance
from ldm.types import Posterior

PerSample = Float[Tensor, "b"]
Penalty = Callable[[Tensor], Tensor]  # elementwise, of the difference


@dataclass(frozen=True)
class Charbonnier:
    """sqrt(d^2 + eps^2) - eps: L1 that is smooth at 0 (Lai et al. 2017)."""

    eps: float = 1e-3

    def __call__(self, difference: Tensor) -> Tensor:
        """Elementwise."""
        return (difference.square() + self.eps**2).sqrt() - self.eps


@dataclass(frozen=True)
class L1:
    """|d|."""

    def __call__(self, difference: Tensor) -> Tensor:
        """Elementwise."""
        return difference.abs()


@dataclass(frozen=True)
class L2:
    """d^2."""

    def __call__(self, difference: Tensor) -> Tensor:
        """Elementwise."""
        return difference.square()


def gaussian_kl(posterior: Posterior) -> Float[Tensor, "b c h w"]:
    """KL(N(mean, std^2) || N(0, 1)) of each latent number, in nats; 0 where std is, since a
    deterministic posterior has no KL, only a position."""
    variance = posterior.std.square()
    nats = 0.5 * (posterior.mean.square() + variance - 1 - variance.clamp(min=1e-20).log())
    return torch.where(variance > 0, nats, 0.0)


@dataclass(frozen=True)
class ReconstructionTerms:
    """The parts of the loss, unweighted, `[b]` each; `total` is their weighted sum."""

    pixel: PerSample
    edges: PerSample
    perceptual: PerSample
    kl: PerSample
    reconstruction: PerSample  # pixel, edges and perceptual, weighted: what a critic is set against
    total: PerSample


@dataclass(frozen=True)
class ReconstructionLoss:
    """Weighted sum of a pixel penalty, an edge penalty, a perceptual distance and the KL term.

    `scales` adds the pixel penalty of pictures halved 1, 2, ... times; `edges` weights the same
    penalty of horizontal and vertical differences. The KL term is in nats for each number of the
    image, so that `kl` is the weight of the published configurations, which sum both over a
    picture; nats below `free_nats` for each number of the latent cost nothing (Kingma et al. 2016).
    """

    pixel: Penalty
    scales: int = 1
    edges: float = 0.0
    perceptual: PerceptualDistance | None = None
    perceptual_weight: float = 1.0
    kl: float = 1e-6
    free_nats: float = 0.0

    def __call__(
        self,
        reconstruction: Picture,
        image: Picture,
        posterior: Posterior,
        *,
        encoded: int | None = None,
    ) -> ReconstructionTerms:
        """Computed in float32, but for a perceptual network, which runs in the training's
        precision. The posterior's KL is 0 where its std is (a codebook bounds it).
        `encoded` is how many numbers the encoded picture had, where `image` is another one."""
        made, wanted = at_least_float32(reconstruction), at_least_float32(image)
        pixel = self._pixel(made, wanted)
        nothing = torch.zeros_like(pixel)
        edges = self._edges(made, wanted) if self.edges else nothing
        perceptual = nothing if self.perceptual is None else self.perceptual(made, wanted)
        kl = self._kl(posterior) * (posterior.mean[0].numel() / (encoded or image[0].numel()))
        kept = pixel + self.edges * edges + self.perceptual_weight * perceptual
        return ReconstructionTerms(pixel, edges, perceptual, kl, kept, kept + self.kl * kl)

    def to(self, device: torch.device) -> None:
        """Move the perceptual network."""
        if self.perceptual is not None:
            self.perceptual.to(device)

    def _pixel(self, made: Picture, wanted: Picture) -> PerSample:
        loss = self.pixel(made - wanted).mean(dim=(1, 2, 3))
        for _ in range(self.scales - 1):
            made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
            loss = loss + self.pixel(made - wanted).mean(dim=(1, 2, 3))
        return loss

    def _edges(self, made: Picture, wanted: Picture) -> PerSample:
        difference = made - wanted
        rows, columns = difference.diff(dim=2), difference.diff(dim=3)
        return self.pixel(rows).mean(dim=(1, 2, 3)) + self.pixel(columns).mean(dim=(1, 2, 3))

    def _kl(self, posterior: Posterior) -> PerSample:
        """Mean nats a latent number; of a deterministic posterior not even the free ones."""
        nats = gaussian_kl(posterior).mean(dim=(2, 3))
        drawn = (posterior.std > 0).flatten(2).any(dim=2)
        return torch.where(drawn, nats.clamp(min=self.free_nats), 0.0).mean(dim=1)
