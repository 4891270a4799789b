"""Diffusion transformers: DiT (arXiv 2212.09748); by its switches SiT, PixArt, LightningDiT too."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ldm.models.attention import check_heads
from ldm.models.dit_blocks import DiTBlock, PatchEmbedding, PatchOutput
from ldm.models.embeddings import (
    TimeEmbedding,
    VectorEmbedding,
    beside,
    rotary_angles,
    sincos_positions,
)
from ldm.types import Condition, Latent, Time


@runtime_checkable
class MasksPatches(Protocol):
    """A network that can be trained on some of its patches: it heeds `Condition.kept`."""

    def patches(self, rows: int, columns: int) -> int:
        """How many patches a latent has; ValueError where the network is not set up for it."""


class DiT(nn.Module):
    """A transformer over latent patches, steered by adaptive layer norm; any latent size.

    text_width: of `Condition.tokens`, told by cross-attention in every block; 0 for none.
    pooled_width: of `Condition.pooled`, added to the time embedding; 0 ignores it.
    classes: `Condition.pooled` is instead a one-hot class out of `classes` and "no class".
    out_channels: twice `in_channels` where the variance is learned too.
    hidden: width of the feed-forward layers; 4 * width where not given.
    rope: tokens turn with their place in every attention, besides the added sine positions.
    registers: learned tokens that belong to no patch (arXiv 2309.16588).
    time_scale, time_offset: the network is told time_scale * t + time_offset.
    frequency_shift: of the time features; 0 as DiT was trained, 1 as diffusers computes it.
    spatial: a number for each channel of `Condition.spatial`, which stands there when nothing is
        told.
    masked_blocks: first and last (left out) of the blocks that look only at the patches in
        `Condition.kept`; the others go around them unchanged (TREAD, arXiv 2501.04765).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 2,
        text_width: int = 0,
        pooled_width: int = 0,
        classes: int = 0,
        out_channels: int | None = None,
        hidden: int | None = None,
        qk_norm: bool = False,
        rms_norm: bool = False,
        swiglu: bool = False,
        rope: bool = False,
        shared_modulation: bool = False,
        registers: int = 0,
        time_scale: float = 1000.0,
        time_offset: float = 0.0,
        frequency_shift: float = 0.0,
        spatial: Sequence[float] = (),
        masked_blocks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        if classes and pooled_width:
            raise ValueError(
                f"classes={classes} and pooled_width={pooled_width} both claim the pooled "
                "condition: set one of them to 0"
            )
        if masked_blocks and not (
            len(masked_blocks) == 2 and 0 <= masked_blocks[0] < masked_blocks[1] <= depth
        ):
            raise ValueError(
                f"masked_blocks={list(masked_blocks)} name no range of {depth} blocks: set the "
                f"first and the one behind the last, such as [1, {depth - 1}]"
            )
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.width = width
        self.heads = heads
        self.patch = patch
        self.text_width = text_width
        self.pooled_width = pooled_width
        self.classes = classes
        self.depth = depth
        self.hidden = 4 * width if hidden is None else hidden
        self.qk_norm = qk_norm
        self.rms_norm = rms_norm
        self.swiglu = swiglu
        self.rope = rope
        self.shared_modulation = shared_modulation
        self.spatial = tuple(spatial)
        self.masked_blocks = tuple(masked_blocks)

        self.time = TimeEmbedding(
            256, width, scale=time_scale, offset=time_offset, shift=frequency_shift
        )
        self.pooled = VectorEmbedding(pooled_width, width) if pooled_width else None
        self.label = nn.Linear(classes + 1, width, bias=False) if classes else None
        self.text = VectorEmbedding(text_width, width) if text_width else None
        self.enter = PatchEmbedding(in_channels + len(spatial), width, patch)
        self.registers = nn.Parameter(torch.zeros(registers, width)) if registers else None
        self.modulation = nn.Linear(width, 6 * width) if shared_modulation else None
        self.blocks = nn.ModuleList(
            DiTBlock(
                width,
                heads,
                hidden=self.hidden,
                text=text_width > 0,
                qk_norm=qk_norm,
                rms_norm=rms_norm,
                swiglu=swiglu,
                shared_modulation=shared_modulation,
            )
            for _ in range(depth)
        )
        self.leave = PatchOutput(
            width, self.out_channels, patch, rms_norm=rms_norm, shared_modulation=shared_modulation
        )
        self._initialise()

    def _initialise(self) -> None:
        """The embeddings start with deviation 0.02, as published; the blocks see to themselves."""
        for embedding in (self.time, self.pooled, self.label, self.text, self.modulation):
            if embedding is not None:
                for parameter in embedding.parameters():
                    nn.init.normal_(parameter, std=0.02)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=0.02)

    def embed(self, t: Time, condition: Condition) -> Tensor:
        """The time and the pooled condition or class, `[b width]`."""
        embedding: Tensor = self.time(t)
        entrance = self.pooled if self.label is None else self.label
        if entrance is not None:
            if condition.pooled is None:
                raise ValueError(
                    "the DiT takes a pooled condition and the caption encoder gives none: set "
                    "backbone.pooled_width=0 and backbone.classes=0"
                )
            embedding = embedding + entrance(condition.pooled.to(embedding.dtype))
        return embedding

    def patches(self, rows: int, columns: int) -> int:
        """Of a latent of so many cells. ValueError where no blocks can leave any out."""
        if not self.masked_blocks:
            raise ValueError(
                "no block of this network leaves patches out: set backbone.masked_blocks=[1, "
                f"{self.depth - 1}], or no token masking"
            )
        return (rows // self.patch) * (columns // self.patch)

    def forward(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        """Rows and columns must be multiples of `patch`."""
        rows, columns = x_t.shape[2] // self.patch, x_t.shape[3] // self.patch
        x = self.enter(beside(x_t, condition, self.in_channels, self.spatial))
        x = x + sincos_positions(rows, columns, self.width, device=x.device).to(x.dtype)
        angles = None
        if self.rope:
            angles = rotary_angles(rows, columns, self.width // self.heads, device=x.device)
        count = 0
        if self.registers is not None:
            count = len(self.registers)
            x = torch.cat([self.registers.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
            if angles is not None:  # registers have no place: they do not turn
                angles = (
                    pad(angles[0], (0, 0, count, 0), value=1.0),
                    pad(angles[1], (0, 0, count, 0)),
                )
        embedding = self.embed(t, condition)
        shared = embedding
        if self.modulation is not None:
            shared = self.modulation(nn.functional.silu(embedding))
        tokens = None if self.text is None else self.text(condition.tokens)
        mask = None if self.text is None else condition.mask
        first, last = self.masked_blocks or (0, self.depth)
        kept = None
        if condition.kept is not None and self.masked_blocks:
            own = torch.arange(count, device=x.device).expand(len(x), -1)
            kept = torch.cat([own, condition.kept + count], dim=1)
        for block in self.blocks[:first]:
            x = block(x, embedding, shared, tokens, mask, angles)
        inner, turned = x, angles
        if kept is not None:
            inner = taken(x, kept)
            turned = None if angles is None else (angles[0][kept], angles[1][kept])
        for block in self.blocks[first:last]:
            inner = block(inner, embedding, shared, tokens, mask, turned)
        x = inner if kept is None else x.scatter(1, places(kept, x), inner.to(x.dtype))
        for block in self.blocks[last:]:
            x = block(x, embedding, shared, tokens, mask, angles)
        predicted: Tensor = self.leave(x[:, count:], embedding, rows, columns)
        return predicted


def taken(x: Float[Tensor, "b n w"], kept: Int[Tensor, "b k"]) -> Float[Tensor, "b k w"]:
    """The tokens of these numbers."""
    return x.gather(1, places(kept, x))


def places(kept: Int[Tensor, "b k"], x: Float[Tensor, "b n w"]) -> Int[Tensor, "b k w"]:
    """The numbers once for every channel, as gather and scatter want them."""
    return kept[..., None].expand(-1, -1, x.shape[2])
