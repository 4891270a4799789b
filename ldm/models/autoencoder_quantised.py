"""Autoencoders whose decoder reads codes from a finite set (VQGAN, Esser et al. 2021).

As in latent diffusion's VQ-regularised models, the latent that a second stage learns is the
continuous one in front of the quantizer, which belongs to the decoding half.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ldm.models.autoencoder import Autoencoder, Latent, Quantised, check_image
from ldm.models.autoencoder_networks import encoder_and_decoder
from ldm.models.layers import Picture, at_least_float32
from ldm.models.quantizers import FiniteScalarQuantizer, VectorQuantizer
from ldm.types import Posterior


class QuantisedAutoencoder(Autoencoder):
    """The convolutional autoencoder around a quantizer, which fixes the latent channels.

    The other arguments are `KLAutoencoder`'s.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer | FiniteScalarQuantizer,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        patch: int = 1,
        groups: int = 32,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.image_channels = image_channels
        self.latent_channels = quantizer.channels
        self.entries = quantizer.entries
        self.factor = patch * 2 ** (len(widths) - 1)
        self.quantizer = quantizer
        self.encoder, self.decoder = encoder_and_decoder(
            quantizer.channels,
            quantizer.channels,
            widths,
            blocks,
            image_channels=image_channels,
            attention_levels=attention_levels,
            middle_attention=middle_attention,
            patch=patch,
            groups=groups,
        )
        self.to_latent = nn.Conv2d(quantizer.channels, quantizer.channels, 1)
        self.from_latent = nn.Conv2d(quantizer.channels, quantizer.channels, 1)

    def encode(self, image: Picture) -> Posterior:
        """The continuous latent, with std 0."""
        check_image(image, self.image_channels, self.factor)
        latent = self.quantizer.prepare(at_least_float32(self.to_latent(self.encoder(image))))
        return Posterior(latent, torch.zeros_like(latent))

    def quantise(self, latent: Latent) -> Quantised:
        """The nearest codes; in training mode a codebook remembers the latent for `stepped`."""
        return self.quantizer(latent)

    def stepped(self) -> None:
        """A codebook learns from what it saw since the last step."""
        if isinstance(self.quantizer, VectorQuantizer):
            self.quantizer.stepped()

    def expand(self, latent: Latent) -> Picture:
        """The picture of a quantised latent, not clamped."""
        return self.decoder(self.from_latent(latent))

    def codes(self, image: Picture) -> Int[Tensor, "b h w"]:
        """Each latent cell's index in 0..entries-1."""
        codes = self.quantise(self.encode(image).mean).codes
        assert codes is not None
        return codes

    def last_layer(self) -> Tensor:
        """The decoder's last convolution."""
        return self.decoder.conv_out.weight

    def latent_layer(self) -> Tensor:
        """The encoder's last convolution."""
        return self.encoder.conv_out.weight

    def encoding(self) -> list[nn.Module]:
        """The encoder and the convolution behind it; codes are read from the latent."""
        return [self.encoder, self.to_latent]
