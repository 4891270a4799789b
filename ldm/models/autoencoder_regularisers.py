"""Two ways to make latents easier to diffuse in, each off unless it is given to the training."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.models.autoencoder import Latent
from ldm.models.layers import Picture, at_least_float32, without_autocast
from ldm.models.perceptual import FeatureMaps
from ldm.types import Draws

Pair = tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b C H2 W2"]]


@dataclass(frozen=True)
class Equivariance:
    """A shrunken and turned latent should decode to the shrunken and turned picture (EQ-VAE,
    Kouzelis et al. 2025, eq. 5).

    With `probability` a whole step trains on such a pair in place of the plain one: both sides of
    the latent are scaled alike by a factor in [smallest, 1], then turned by 0 to 3 right angles.
    """

    probability: float = 0.5
    smallest: float = 0.25

    def __post_init__(self) -> None:
        if not (0 < self.probability <= 1 and 0 < self.smallest <= 1):
            raise ValueError(
                f"module.equivariance has probability={self.probability}, smallest={self.smallest}:"
                " set both in (0, 1], or module.equivariance=null for none"
            )

    def __call__(self, latent: Latent, image: Picture, draws: Draws) -> Pair:
        """The pair to train on; the one that was given, to the bit, with 1 - probability."""
        if draws.shared_uniform("equivariance") >= self.probability:
            return latent, image
        least = self.smallest + (1 - self.smallest) * draws.shared_uniform("equivariance scale")
        turns = int(4 * draws.shared_uniform("equivariance turns"))
        return transformed(latent, image, least, turns)


def transformed(latent: Latent, image: Picture, scale: float, turns: int) -> Pair:
    """Both shrunk to about `scale` and turned by `turns` right angles. The latent's size is rounded
    up to whole cells and the image's follows, so that the factor between them stays."""
    factor = image.shape[2] // latent.shape[2]
    size = [max(1, math.ceil(scale * side)) for side in latent.shape[2:]]
    pixels = [side * factor for side in size]
    if size != list(latent.shape[2:]):
        latent = F.interpolate(latent, size=size, mode="bicubic", antialias=True)
        image = F.interpolate(image, size=pixels, mode="bicubic", antialias=True).clamp(-1, 1)
    return torch.rot90(latent, turns, (2, 3)), torch.rot90(image, turns, (2, 3))


class Alignment(nn.Module):
    """Latents that tell what a frozen vision network tells (VA-VAE, Yao et al. 2025, eq. 3-6).

    A linear map of the latent should point where the features of the same place point, up to a
    cosine of 1 - `cosine_margin`; and two places should be as alike in the latent as they are in
    the features, up to `distance_margin`. The last map of `features` is brought to the latent's
    size. Only the linear map is trained; the frozen network is no part of the module. `weight` is
    its share of the loss. With `adaptive` that is scaled so that at the encoder's last layer its
    gradient is as long as the reconstruction's, at most `most` times, as they do it.
    """

    def __init__(
        self,
        features: FeatureMaps,
        *,
        latent_channels: int,
        width: int,
        weight: float = 0.1,
        cosine_margin: float = 0.5,
        distance_margin: float = 0.25,
        adaptive: bool = True,
        most: float = 1e4,
    ) -> None:
        super().__init__()
        self.features = features
        self.weight, self.adaptive, self.most = weight, adaptive, most
        self.cosine_margin, self.distance_margin = cosine_margin, distance_margin
        self.to_features = nn.Conv2d(latent_channels, width, 1, bias=False)

    def forward(self, latent: Latent, image: Picture) -> Float[Tensor, "b"]:
        """The sum of both, each a mean over places or pairs of places; not weighted."""
        with torch.no_grad():
            told = at_least_float32(self.features(image)[-1])
            self._refuse_other_widths(latent.shape[1], told.shape[1])
            told = F.interpolate(told, size=latent.shape[2:], mode="bilinear", antialias=True)
        cosine = F.cosine_similarity(at_least_float32(self.to_features(latent)), told)
        pointing = F.relu(1 - self.cosine_margin - cosine).mean(dim=(1, 2))
        with without_autocast(latent.device):
            apart = (likeness(at_least_float32(latent)) - likeness(told)).abs()
        return pointing + F.relu(apart - self.distance_margin).mean(dim=(1, 2))

    def _refuse_other_widths(self, latent: int, told: int) -> None:
        width, channels = self.to_features.weight.shape[:2]
        for key, given, there in (("latent_channels", channels, latent), ("width", width, told)):
            if given != there:
                raise ValueError(
                    f"module.alignment.{key}={given}: the "
                    f"{'autoencoder' if key == 'latent_channels' else 'vision network'} gives "
                    f"{there} channels; set it to {there}"
                )


def likeness(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n n"]:
    """Cosines of every place's vector with every other's."""
    vectors = F.normalize(maps.flatten(2), dim=1)
    return vectors.transpose(1, 2) @ vectors
