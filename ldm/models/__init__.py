"""Networks with parameters: autoencoders, critics, denoising backbones."""

from ldm.models.dit import DiT
from ldm.models.unet import UNet

__all__ = [
    "DiT",
    "UNet",
]
