"""The parts of diffusion transformers: modulation, blocks, patches in and out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.models.attention import (
    CrossAttention,
    FeedForward,
    GatedFeedForward,
    RMSNorm,
    SelfAttention,
    zero,
)


def modulate(
    x: Float[Tensor, "b n w"], shift: Float[Tensor, "b w"], scale: Float[Tensor, "b w"]
) -> Float[Tensor, "b n w"]:
    """x (1 + scale) + shift, the same for every token of a sample (arXiv 2212.09748, 3.2)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def token_norm(width: int, *, rms: bool) -> nn.Module:
    """LayerNorm without parameters as in DiT, or RMSNorm with a gain as in LightningDiT."""
    if rms:
        return RMSNorm(width)
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def glorot(module: nn.Module) -> None:
    """Glorot's uniform start for every linear layer inside, biases zero, as DiT is published."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Modulation(nn.Module):
    """The `count` vectors that steer a block: from the embedding, by a layer of its own (adaLN),
    or as offsets to vectors that all blocks share (adaLN-single, PixArt, arXiv 2310.00426)."""

    def __init__(self, width: int, count: int, *, shared: bool) -> None:
        super().__init__()
        self.count = count
        self.layer = None if shared else nn.Linear(width, count * width)
        self.offsets = nn.Parameter(torch.randn(count, width) / width**0.5) if shared else None
        if self.layer is not None:
            zero(self.layer)

    def forward(
        self, embedding: Float[Tensor, "b w"], shared: Float[Tensor, "b v"]
    ) -> tuple[Tensor, ...]:
        """`embedding` is before its activation; `shared` `[b, count * w]` what all blocks share."""
        if self.layer is not None:
            return self.layer(nn.functional.silu(embedding)).chunk(self.count, dim=1)
        assert self.offsets is not None
        return (shared.view(len(shared), *self.offsets.shape) + self.offsets).unbind(1)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention where there is text, feed-forward; modulated and gated.

    Starts as the identity: gates are zero (adaLN-Zero), and so is what leaves the cross-attention.
    With shared modulation the gates start near zero, as PixArt's do.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int,
        text: bool,
        qk_norm: bool = False,
        rms_norm: bool = False,
        swiglu: bool = False,
        shared_modulation: bool = False,
    ) -> None:
        super().__init__()
        self.modulation = Modulation(width, 6, shared=shared_modulation)
        self.attention_norm = token_norm(width, rms=rms_norm)
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm)
        self.cross_attention = (
            CrossAttention(width, width, heads, qk_norm=qk_norm) if text else None
        )
        self.feed_norm = token_norm(width, rms=rms_norm)
        self.feed_forward = (
            GatedFeedForward(width, hidden, swish=True) if swiglu else FeedForward(width, hidden)
        )
        for layer in (self.attention, self.cross_attention, self.feed_forward):
            if layer is not None:
                glorot(layer)
        if self.cross_attention is not None:
            zero(self.cross_attention.out)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        embedding: Float[Tensor, "b w"],
        shared: Float[Tensor, "b v"],
        tokens: Float[Tensor, "b l w"] | None,
        mask: Bool[Tensor, "b l"] | None,
        angles: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "b n w"]:
        """All blocks share this signature, so that they can be compiled and sharded alike."""
        steer = self.modulation(embedding, shared)
        hidden = modulate(self.attention_norm(x), steer[0], steer[1])
        x = x + steer[2][:, None] * self.attention(hidden, None, angles)
        if self.cross_attention is not None:
            x = x + self.cross_attention(x, tokens, mask)
        hidden = modulate(self.feed_norm(x), steer[3], steer[4])
        return x + steer[5][:, None] * self.feed_forward(hidden)


class PatchEmbedding(nn.Module):
    """Patches of the latent as tokens, row by row."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(in_channels, width, patch, stride=patch)
        nn.init.xavier_uniform_(self.conv.weight.view(width, -1))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """`[b c h w]` to `[b, h/patch * w/patch, d]`."""
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"latents of {x.shape[2]}x{x.shape[3]} cannot be cut into patches of {self.patch}: "
                f"use multiples of {self.patch}, or set backbone.patch=1"
            )
        tokens: Tensor = self.conv(x).flatten(2).transpose(1, 2)
        return tokens


class PatchOutput(nn.Module):
    """Tokens back to a latent: norm, modulation, a linear layer that starts at zero."""

    def __init__(
        self, width: int, out_channels: int, patch: int, *, rms_norm: bool, shared_modulation: bool
    ) -> None:
        super().__init__()
        self.patch = patch
        self.modulation = Modulation(width, 2, shared=shared_modulation)
        self.norm = token_norm(width, rms=rms_norm)
        self.linear = nn.Linear(width, patch * patch * out_channels)
        zero(self.linear)

    def forward(
        self, x: Float[Tensor, "b n d"], embedding: Float[Tensor, "b d"], rows: int, columns: int
    ) -> Float[Tensor, "b c h w"]:
        """`rows` and `columns` count patches."""
        shift, scale = self.modulation(embedding, embedding.repeat(1, 2))
        x = self.linear(modulate(self.norm(x), shift, scale))
        x = x.view(len(x), rows, columns, self.patch, self.patch, -1)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
