"""Convolutional autoencoders of the latent-diffusion family (Rombach et al. 2022, appendix E).

An image [b C H W] becomes a latent [b c H/f W/f] with f = patch * 2**(levels - 1), and comes back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm.models.autoencoder_networks import encoder_and_decoder
from ldm.models.layers import Picture, at_least_float32
from ldm.types import Posterior

Latent = Float[Tensor, "b c h w"]  # as the encoder leaves it: not yet normalised


@dataclass(frozen=True)
class Quantised:
    """What a bottleneck makes of a latent: the same shape; where there is a codebook, the index of
    each position's entry, and the loss that keeps encoder and codebook together."""

    latent: Latent
    codes: Int[Tensor, "b h w"] | None = None
    penalty: Float[Tensor, ""] | None = None


class Autoencoder(nn.Module):
    """What training and `LatentCodec` ask of an autoencoder: `encode` and `expand` are its two
    halves, `quantise` stands between them."""

    image_channels: int
    latent_channels: int
    factor: int  # pixels a latent cell, in each direction
    entries: int = 0  # codes of the bottleneck; 0 where there is no codebook

    def encode(self, image: Picture) -> Posterior:
        """A Gaussian over latents, float32; std is 0 where the encoder is deterministic."""
        raise NotImplementedError

    def expand(self, latent: Latent) -> Picture:
        """The decoding network alone."""
        raise NotImplementedError

    def last_layer(self) -> Tensor:
        """The weight that writes pixels: where reconstruction and critic are balanced."""
        raise NotImplementedError

    def latent_layer(self) -> Tensor:
        """The encoder's last weight: where reconstruction and alignment are balanced."""
        raise NotImplementedError

    def encoding(self) -> list[nn.Module]:
        """The parts that make a latent: what decoder-only training freezes and what a latent's
        fingerprint covers."""
        raise NotImplementedError

    def quantise(self, latent: Latent) -> Quantised:
        """The bottleneck; the identity where there is no codebook."""
        return Quantised(latent)

    def stepped(self) -> None:
        """The optimizer has made a step: time for what learns otherwise than by gradients."""

    def decode(self, latent: Latent) -> Picture:
        """The picture of a latent as `encode` gives it; not clamped."""
        return self.expand(self.quantise(latent).latent)


class KLAutoencoder(Autoencoder):
    """A diagonal Gaussian over latents, kept loosely near the standard one by a KL term.

    `width` and `multipliers` give the channels of each level, `blocks` the residual blocks a level,
    `attention_levels` the levels (0 the finest) with attention. With `patch` > 1 pixels are first
    folded into channels, patch * patch at a time, which is what makes small models fast on CPUs.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        patch: int = 1,
        groups: int = 32,
        image_channels: int = 3,
        latent_convolutions: bool = True,
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        self.factor = patch * 2 ** (len(widths) - 1)
        moments = 2 * latent_channels
        self.encoder, self.decoder = encoder_and_decoder(
            moments,
            latent_channels,
            widths,
            blocks,
            image_channels=image_channels,
            attention_levels=attention_levels,
            middle_attention=middle_attention,
            patch=patch,
            groups=groups,
        )
        self.to_moments = nn.Conv2d(moments, moments, 1) if latent_convolutions else nn.Identity()
        self.from_latent = (
            nn.Conv2d(latent_channels, latent_channels, 1) if latent_convolutions else nn.Identity()
        )

    def encode(self, image: Picture) -> Posterior:
        """Mean and std `[b c H/f W/f]`, float32 under autocast too."""
        check_image(image, self.image_channels, self.factor)
        moments = self.to_moments(self.encoder(image))
        mean, log_variance = at_least_float32(moments).chunk(2, dim=1)
        return Posterior(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def expand(self, latent: Latent) -> Picture:
        """The picture, not clamped."""
        return self.decoder(self.from_latent(latent))

    def last_layer(self) -> Tensor:
        """The decoder's last convolution."""
        return self.decoder.conv_out.weight

    def latent_layer(self) -> Tensor:
        """The encoder's last convolution."""
        return self.encoder.conv_out.weight

    def encoding(self) -> list[nn.Module]:
        """The encoder and the convolution behind it."""
        return [self.encoder, self.to_moments]


def check_image(image: Picture, channels: int, factor: int) -> None:
    """Refuse pictures that the network cannot take, with the remedy."""
    if image.shape[1] != channels:
        raise ValueError(
            f"images have {image.shape[1]} channels, the autoencoder takes {channels}: "
            "convert them (to RGB for 3) or set autoencoder.image_channels"
        )
    height, width = image.shape[2:]
    if height % factor or width % factor:
        raise ValueError(
            f"images are {height}x{width}, which the autoencoder's factor {factor} does not "
            f"divide: crop or resize to {height // factor * factor or factor}x"
            f"{width // factor * factor or factor}"
        )
