"""Deep compression autoencoders: 32 or 64 pixels a latent cell (DC-AE, Chen et al. 2025).

Every change of resolution has a shortcut without parameters: going down, pixels are folded into
channels and groups of channels averaged; going up, channels are repeated and unfolded into pixels.
The convolutions beside it learn only what that leaves out, which is what keeps such deep
compression trainable. Coarse levels attend to all positions at linear cost.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from ldm.models.autoencoder import Autoencoder, Latent, check_image
from ldm.models.layers import FeatureMap, Picture, at_least_float32, without_autocast
from ldm.types import Posterior


class ChannelNorm(nn.Module):
    """Each position's vector divided by its root mean square, then scaled and shifted."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Statistics in float32."""
        wide = at_least_float32(x)
        size = (wide.square().mean(dim=1, keepdim=True) + self.eps).rsqrt()
        return (wide * size).to(x) * self.scale + self.shift


class ConvolutionBlock(nn.Module):
    """x + norm(conv(silu(conv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Channels and resolution stay."""
        return x + self.norm(self.conv2(F.silu(self.conv1(x))))


class LinearAttentionBlock(nn.Module):
    """Attention with a ReLU kernel, whose cost grows with the number of positions and not with its
    square (Katharopoulos et al. 2020), then a gated convolution; both residual."""

    def __init__(self, channels: int, *, head_width: int = 32, expansion: int = 4) -> None:
        super().__init__()
        if channels % head_width:
            raise ValueError(f"{channels} channels do not split into heads of {head_width}")
        self.head_width = head_width
        inner = channels * expansion
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm1 = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * inner, 1)
        self.mix = nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner)
        self.narrow = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Channels and resolution stay."""
        x = x + self.norm1(self.out(self._attend(x)))
        value, gate = self.mix(F.silu(self.widen(x))).chunk(2, dim=1)
        return x + self.norm2(self.narrow(value * F.silu(gate)))

    def _attend(self, x: FeatureMap) -> FeatureMap:
        b, c, h, w = x.shape
        joined = at_least_float32(self.query_key_value(x))
        query, key, value = joined.view(b, 3, c // self.head_width, self.head_width, h * w).unbind(
            1
        )
        mixed = linear_attention(F.relu(query), F.relu(key), value)
        return mixed.reshape(b, c, h, w).to(x)


def linear_attention(
    query: Float[Tensor, "b n d l"], key: Float[Tensor, "b n d l"], value: Float[Tensor, "b n d l"]
) -> Float[Tensor, "b n d l"]:
    """sum_j (q_i . k_j) v_j / sum_j (q_i . k_j), for non-negative q and k; 0 where all are 0."""
    with without_autocast(query.device):
        mixed = linear_memory(key, value) @ query
        return mixed[:, :, :-1] / (mixed[:, :, -1:] + 1e-6)


@wrap_torch_function(lambda key, value: (key, value))
def linear_memory(
    key: Float[Tensor, "b n d l"], value: Float[Tensor, "b n d l"]
) -> Float[Tensor, "b n d1 d"]:
    """All that a query meets: sum_j v_j k_j^T and, in the last row, sum_j k_j. A function of torch
    to whoever must see it called: tiles of a picture add theirs up."""
    return F.pad(value, (0, 0, 0, 1), value=1.0) @ key.transpose(-1, -2)


class FoldDown(nn.Module):
    """Half the rows and columns: a convolution, folded, beside the folded and averaged input."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(channels, out_channels // 4, 3, padding=1)

    def forward(self, x: FeatureMap) -> Float[Tensor, "b out h2 w2"]:
        """4 * channels must divide by out_channels."""
        folded = F.pixel_unshuffle(x, 2)
        return F.pixel_unshuffle(self.conv(x), 2) + averaged(folded, self.out_channels)


class UnfoldUp(nn.Module):
    """Twice the rows and columns: a convolution, unfolded, beside the repeated, unfolded input."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.repeats = 4 * out_channels // channels
        self.conv = nn.Conv2d(channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: FeatureMap) -> Float[Tensor, "b out h2 w2"]:
        """4 * out_channels must divide by channels."""
        repeated = x.repeat_interleave(self.repeats, dim=1)
        return F.pixel_shuffle(self.conv(x) + repeated, 2)


def averaged(x: FeatureMap, channels: int) -> Float[Tensor, "b out h w"]:
    """Means of neighbouring channels, `channels` of them."""
    b, c, h, w = x.shape
    return x.view(b, channels, c // channels, h, w).mean(dim=2)


class DeepCompressionAutoencoder(Autoencoder):
    """Deterministic: its posterior has std 0. The factor is patch * 2 ** (levels - 1).

    `widths` and `blocks` have a number for each level, the finest first; the last
    `attention_levels` of them attend. Each width must divide 4 times the one before it, and
    `latent_channels` the last one.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        attention_levels: int = 3,
        patch: int = 1,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        _check(widths, blocks, latent_channels)
        self.image_channels, self.latent_channels = image_channels, latent_channels
        self.patch, self.factor = patch, patch * 2 ** (len(widths) - 1)
        self.widths, self.level_blocks = tuple(widths), tuple(blocks)
        self.attention_levels = attention_levels
        pixels = image_channels * patch**2
        kinds = [level >= len(widths) - attention_levels for level in range(len(widths))]

        def level(width: int, count: int, attends: bool) -> list[nn.Module]:
            block = LinearAttentionBlock if attends else ConvolutionBlock
            return [block(width) for _ in range(count)]

        down: list[nn.Module] = [nn.Conv2d(pixels, widths[0], 3, padding=1)]
        up: list[nn.Module] = []
        for place, (width, count, attends) in enumerate(zip(widths, blocks, kinds, strict=True)):
            finer = [UnfoldUp(width, widths[place - 1])] if place else []
            down += [FoldDown(widths[place - 1], width)] if place else []
            down += level(width, count, attends)
            up = [*level(width, count, attends), *finer, *up]
        self.encoder = nn.Sequential(*down)
        self.to_latent = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)
        self.from_latent = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.decoder = nn.Sequential(*up, ChannelNorm(widths[0]), nn.ReLU())
        self.conv_out = nn.Conv2d(widths[0], pixels, 3, padding=1)

    def encode(self, image: Picture) -> Posterior:
        """The latent, with std 0."""
        check_image(image, self.image_channels, self.factor)
        features = self.encoder(F.pixel_unshuffle(image, self.patch))
        latent = self.to_latent(features) + averaged(features, self.latent_channels)
        latent = at_least_float32(latent)
        return Posterior(latent, torch.zeros_like(latent))

    def expand(self, latent: Latent) -> Picture:
        """The picture, not clamped."""
        repeats = self.from_latent.out_channels // self.latent_channels
        features = self.from_latent(latent) + latent.repeat_interleave(repeats, dim=1)
        return F.pixel_shuffle(self.conv_out(self.decoder(features)), self.patch)

    def last_layer(self) -> Tensor:
        """The last convolution."""
        return self.conv_out.weight

    def latent_layer(self) -> Tensor:
        """The convolution behind the encoder."""
        return self.to_latent.weight

    def encoding(self) -> list[nn.Module]:
        """The encoder and the convolution behind it."""
        return [self.encoder, self.to_latent]


def _check(widths: Sequence[int], blocks: Sequence[int], latent_channels: int) -> None:
    if len(widths) != len(blocks) or not widths:
        raise ValueError(
            f"autoencoder.widths has {len(widths)} levels, autoencoder.blocks {len(blocks)}: "
            "give a number of each for every level"
        )
    ladder = [*widths, latent_channels]
    factors = [4] * (len(widths) - 1) + [1]
    for before, after, factor in zip(ladder, ladder[1:], factors, strict=False):
        if before * factor % after or after * 4 % before * (factor == 4):
            raise ValueError(
                f"{after} channels after {before} leave no whole groups for the shortcut: choose "
                "autoencoder.widths that double, stay or halve, and latent_channels that divide "
                "the last"
            )
