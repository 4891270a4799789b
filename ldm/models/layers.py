"""Layers that convolutional autoencoders and U-Nets share."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FeatureMap = Float[Tensor, "b c h w"]
Picture = Float[Tensor, "b C H W"]  # in [-1, 1], of any number of channels


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; float64 stays, for exact comparisons."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Full precision inside; the meta device knows no autocast."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class ResidualBlock(nn.Module):
    """x + f(x), where f normalises, activates and convolves twice (He et al. 2016, pre-activation).

    With `embedding_width` > 0 a vector a sample (time, pooled text) is projected and added between
    the two convolutions, as in DDPM's U-Net.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        embedding_width: int = 0,
        groups: int = 32,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_width, out_channels) if embedding_width else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(
        self, x: FeatureMap, embedding: Float[Tensor, "b e"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """The embedding must be given exactly when the block was built with a width for it."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.embedding is not None:
            if embedding is None:
                raise ValueError("this ResidualBlock has an embedding_width: call it with a vector")
            hidden = hidden + self.embedding(F.silu(embedding))[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.shortcut(x) + hidden


class SpatialAttention(nn.Module):
    """x + attention among all positions of a feature map, after a group normalisation."""

    def __init__(
        self, channels: int, *, heads: int = 1, groups: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} heads")
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Softmax attention with scale 1/sqrt(channels of a head)."""
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(tokens).view(b, h * w, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.out(mixed.transpose(1, 2).reshape(b, h * w, c))
        return x + mixed.transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Module):
    """Half the rows and columns: a convolution of stride 2 padded at the right and the bottom only,
    as the published autoencoders have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: FeatureMap) -> Float[Tensor, "b c h2 w2"]:
        """h and w must be even."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the rows and columns: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: FeatureMap) -> Float[Tensor, "b c h2 w2"]:
        """Every position becomes four equal ones before the convolution smooths them."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
