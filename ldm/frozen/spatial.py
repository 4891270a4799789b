"""Pictures as channels that stand beside the noisy latent: what is kept of one, or a small one."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from ldm.frozen.codec import LatentCodec
from ldm.types import Image


@runtime_checkable
class BroughtBeside(Protocol):
    """Makes the channels that stand beside the noisy latent of a picture that somebody brings, as
    training makes them of its own pictures. `paints`: it is told what is to be painted."""

    paints: bool

    def brought(
        self, image: Image, paint: Float[Tensor, "b 1 H W"] | None, codec: LatentCodec
    ) -> Float[Tensor, "b s h w"] | None:
        """On the latent's grid; None where the network is to be told nothing."""


def painted(
    image: Image, paint: Float[Tensor, "b 1 H W"], codec: LatentCodec
) -> Float[Tensor, "b s h w"]:
    """For inpainting, in the order of Stable Diffusion's: the mask, 1 in latent cells with a pixel
    that is to be painted, then the latent of the rest, zero in those cells."""
    latent = codec.encode(image * (1 - paint))
    mask = adaptive_max_pool2d(paint.to(latent), latent.shape[2:])
    return torch.cat([mask, latent * (1 - mask)], dim=1)


def enlarged(image: Image, factor: int, codec: LatentCodec) -> Float[Tensor, "b c h w"]:
    """For super-resolution: the latent of the picture made `factor` times smaller and large again,
    both bicubic."""
    size = image.shape[2:]
    small = interpolate(image, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return codec.encode(interpolate(small, size=size, mode="bicubic").clamp(-1, 1))
