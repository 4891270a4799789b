"""The U-Net of latent diffusion (arXiv 2112.10752), and of Stable Diffusion 1.x, 2.x and XL.

Every residual block with the transformer behind it is one entry of `blocks`, in the order of the
forward pass: down (a change of size is an entry of its own), middle (two), up. What enters and
what every down block makes is kept, and the up blocks take them back in reverse.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.models.attention import TextPooling, zero
from ldm.models.embeddings import TimeEmbedding, VectorEmbedding, beside
from ldm.models.unet_blocks import (
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    UNetBlock,
    Upsample,
)
from ldm.types import Condition, Latent, Time


class UNet(nn.Module):
    """A convolutional denoiser with skips across, told about the text by cross-attention.

    channels: of each level, from full size down; every level halves rows and columns.
    depths: transformer layers behind each residual block of a level; 0 for none.
    heads: attention heads of each level.
    middle_depth: transformer layers in the middle; 0 for none.
    residual_blocks: of each level on the way down; one more on the way up.
    pooled_width: of `Condition.pooled`, which is added to the time embedding; 0 ignores it.
    text_pool_heads: of an attention that pools the tokens into the time embedding; 0 for none.
    attend_padding: attends to padded tokens too, as the published weights did in training.
    time_offset: the network is told 1000 t + time_offset; -1 for weights trained on a table.
    spatial: a number for each channel of `Condition.spatial`, which stands there when nothing is
        told: [1, 0, 0, 0, 0] for inpainting in latents of 4 channels.
    """

    def __init__(
        self,
        in_channels: int,
        text_width: int,
        *,
        channels: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        middle_depth: int = 1,
        residual_blocks: int = 2,
        out_channels: int | None = None,
        pooled_width: int = 0,
        text_pool_heads: int = 0,
        groups: int = 32,
        attend_padding: bool = False,
        time_offset: float = 0.0,
        spatial: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not len(channels) == len(depths) == len(heads):
            raise ValueError(
                f"channels {list(channels)}, depths {list(depths)} and heads {list(heads)} "
                "name different numbers of levels: give each one entry a level"
            )
        if wrong := [c for c in channels if c % groups]:
            raise ValueError(f"channels {wrong} are no multiples of groups={groups}")
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.text_width = text_width
        self.channels = tuple(channels)
        self.depths = tuple(depths)
        self.heads = tuple(heads)
        self.middle_depth = middle_depth
        self.residual_blocks = residual_blocks
        self.pooled_width = pooled_width
        self.text_pool_heads = text_pool_heads
        self.groups = groups
        self.attend_padding = attend_padding
        self.spatial = tuple(spatial)
        self.embedding_width = 4 * channels[0]

        self.time = TimeEmbedding(channels[0], self.embedding_width, offset=time_offset)
        self.pooled = VectorEmbedding(pooled_width, self.embedding_width) if pooled_width else None
        self.text_pool = (
            TextPooling(text_width, self.embedding_width, text_pool_heads)
            if text_pool_heads
            else None
        )
        self.enter = nn.Conv2d(in_channels + len(spatial), channels[0], 3, padding=1)
        down, kept = self._down_blocks()
        middle = [
            self._block(channels[-1], len(channels) - 1, middle_depth),
            self._block(channels[-1], len(channels) - 1, 0),
        ]
        self.blocks = nn.ModuleList([*down, *middle, *self._up_blocks(kept)])
        self.norm = nn.GroupNorm(groups, channels[0])
        self.leave = nn.Conv2d(channels[0], self.out_channels, 3, padding=1)
        zero(self.leave)
        self.to(memory_format=torch.channels_last)

    def _block(
        self, in_channels: int, level: int, depth: int, resample: Upsample | None = None
    ) -> UNetBlock:
        channels = self.channels[level]
        transformer = None
        if depth:
            transformer = SpatialTransformer(
                channels, self.heads[level], depth, self.text_width, self.groups
            )
        residual = ResidualBlock(in_channels, channels, self.embedding_width, self.groups)
        return UNetBlock(residual, transformer, resample)

    def _down_blocks(self) -> tuple[list[UNetBlock], list[int]]:
        """The blocks, and the channels of all that the way up takes back."""
        blocks: list[UNetBlock] = []
        kept = [self.channels[0]]
        for level, channels in enumerate(self.channels):
            for _ in range(self.residual_blocks):
                blocks.append(self._block(kept[-1], level, self.depths[level]))
                kept.append(channels)
            if level < len(self.channels) - 1:
                blocks.append(UNetBlock(resample=Downsample(channels)))
                kept.append(channels)
        return blocks, kept

    def _up_blocks(self, kept: list[int]) -> list[UNetBlock]:
        blocks: list[UNetBlock] = []
        current = self.channels[-1]
        for level in reversed(range(len(self.channels))):
            for index in range(self.residual_blocks + 1):
                last = level > 0 and index == self.residual_blocks
                resample = Upsample(self.channels[level]) if last else None
                blocks.append(
                    self._block(current + kept.pop(), level, self.depths[level], resample)
                )
                current = self.channels[level]
        return blocks

    def embed(self, t: Time, condition: Condition) -> Tensor:
        """The time and the pooled condition, `[b, 4 * channels[0]]`."""
        embedding: Tensor = self.time(t)
        if self.text_pool is not None:
            mask = None if self.attend_padding else condition.mask
            embedding = embedding + self.text_pool(condition.tokens.to(embedding.dtype), mask)
        if self.pooled is not None:
            if condition.pooled is None:
                raise ValueError(
                    f"the U-Net takes a pooled condition of width {self.pooled_width} and the "
                    "caption encoder gives none: set backbone.pooled_width=0"
                )
            embedding = embedding + self.pooled(condition.pooled)
        return embedding

    def forward(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        """Rows and columns must be multiples of 2 ** (levels - 1)."""
        step = 2 ** (len(self.channels) - 1)
        if x_t.shape[2] % step or x_t.shape[3] % step:
            raise ValueError(
                f"latents of {x_t.shape[2]}x{x_t.shape[3]} cannot be halved "
                f"{len(self.channels) - 1} times: use multiples of {step}"
            )
        embedding = self.embed(t, condition)
        tokens = condition.tokens.to(embedding.dtype)
        mask = None if self.attend_padding else condition.mask
        told = beside(x_t, condition, self.in_channels, self.spatial)
        x = self.enter(told.to(memory_format=torch.channels_last))
        ups = len(self.channels) * (self.residual_blocks + 1)
        downs = len(self.blocks) - ups - 2
        kept = [x]
        for index, block in enumerate(self.blocks):
            if index >= downs + 2:
                x = torch.cat([x, kept.pop()], dim=1)
            x = block(x, embedding, tokens, mask)
            if index < downs:
                kept.append(x)
        predicted: Tensor = self.leave(nn.functional.silu(self.norm(x)))
        return predicted
