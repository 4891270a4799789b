"""The convolutional halves of autoencoders. Levels are counted from the finest; the decoder walks
them from the coarsest."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.models.layers import Downsample, Picture, ResidualBlock, SpatialAttention, Upsample


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where wanted."""

    def __init__(
        self, channels: int, out_channels: int, blocks: int, *, attention: bool, groups: int
    ) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.blocks = nn.ModuleList(
            ResidualBlock(here, there, groups=groups) for here, there in pairwise(widths)
        )
        self.attentions = nn.ModuleList(
            SpatialAttention(out_channels, groups=groups) if attention else nn.Identity()
            for _ in range(blocks)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        """Rows and columns stay."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return x


def _middle(channels: int, *, attention: bool, groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels, groups=groups),
        SpatialAttention(channels, groups=groups) if attention else nn.Identity(),
        ResidualBlock(channels, channels, groups=groups),
    )


class Encoder(nn.Module):
    """Pixels to features of the coarsest level, `out_channels` wide."""

    def __init__(
        self,
        image_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        *,
        attention_levels: Sequence[int],
        middle_attention: bool,
        patch: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(image_channels * patch**2, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.levels = nn.ModuleList(
            Level(here, there, blocks, attention=index in attention_levels, groups=groups)
            for index, (here, there) in enumerate(zip(before, widths, strict=True))
        )
        self.resamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = _middle(widths[-1], attention=middle_attention, groups=groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, image: Picture) -> Float[Tensor, "b out h w"]:
        """Each level but the last is followed by a halving of rows and columns."""
        x = self.conv_in(F.pixel_unshuffle(image, self.patch))
        for index, level in enumerate(self.levels):
            x = level(x)
            if index < len(self.resamples):
                x = self.resamples[index](x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Features of the coarsest level to pixels: a residual block a level more than the encoder."""

    def __init__(
        self,
        image_channels: int,
        in_channels: int,
        widths: Sequence[int],
        blocks: int,
        *,
        attention_levels: Sequence[int],
        middle_attention: bool,
        patch: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        coarse_first = list(reversed(widths))
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1], attention=middle_attention, groups=groups)
        before = [coarse_first[0], *coarse_first[:-1]]
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            Level(here, there, blocks + 1, attention=last - step in attention_levels, groups=groups)
            for step, (here, there) in enumerate(zip(before, coarse_first, strict=True))
        )
        self.resamples = nn.ModuleList(Upsample(width) for width in coarse_first[:-1])
        self.norm_out = nn.GroupNorm(groups, widths[0], 1e-6)
        self.conv_out = nn.Conv2d(widths[0], image_channels * patch**2, 3, padding=1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Picture:
        """Each level but the last is followed by a doubling of rows and columns."""
        x = self.middle(self.conv_in(features))
        for index, level in enumerate(self.levels):
            x = level(x)
            if index < len(self.resamples):
                x = self.resamples[index](x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch)


def encoder_and_decoder(
    encoded_channels: int,
    latent_channels: int,
    widths: Sequence[int],
    blocks: int,
    *,
    image_channels: int,
    attention_levels: Sequence[int],
    middle_attention: bool,
    patch: int,
    groups: int,
) -> tuple[Encoder, Decoder]:
    """Both halves of one shape; ValueError where group normalisation cannot split the widths."""
    if not widths:
        raise ValueError("autoencoder.multipliers=[]: give one a level, the finest first")
    if beyond := [level for level in attention_levels if not 0 <= level < len(widths)]:
        raise ValueError(
            f"autoencoder.attention_levels names {beyond}, and there are the levels "
            f"0..{len(widths) - 1}: name those, 0 the finest"
        )
    odd = [width for width in widths if width % groups]
    if odd:
        raise ValueError(
            f"channels {odd} do not split into {groups} groups for normalisation: set "
            "autoencoder.groups to a common divisor of width * multipliers"
        )
    encoder = Encoder(
        image_channels,
        encoded_channels,
        widths,
        blocks,
        attention_levels=attention_levels,
        middle_attention=middle_attention,
        patch=patch,
        groups=groups,
    )
    decoder = Decoder(
        image_channels,
        latent_channels,
        widths,
        blocks,
        attention_levels=attention_levels,
        middle_attention=middle_attention,
        patch=patch,
        groups=groups,
    )
    return encoder, decoder
