"""Tensors and records that cross module boundaries, and the conventions that never vary.

Time t runs in [0, 1]: 0 is data, 1 is noise, and x_t = alpha(t) x_0 + sigma(t) noise.
Images are float RGB in [-1, 1]; uint8 exists only where bytes are decoded and PNGs written.
Latents handed to the denoiser have zero mean and unit variance per channel over the data set.
Axes: b batch, c latent channels, h w latent rows/columns, H W image rows/columns, l tokens,
d token width, p pooled width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Image: TypeAlias = Float[Tensor, "b 3 H W"]  # RGB in [-1, 1]
Latent: TypeAlias = Float[Tensor, "b c h w"]  # zero mean, unit variance over the data set
Time: TypeAlias = Float[Tensor, "b"]  # 0 is data, 1 is noise


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told about each sample: token states, and optionally one vector, and
    channels that stand beside the noisy latent (a masked picture, a small one enlarged). In masked
    training `kept` numbers the patches that the inner blocks look at; no other use sets it."""

    tokens: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]  # True where a token counts
    pooled: Float[Tensor, "b p"] | None = None
    spatial: Float[Tensor, "b s h w"] | None = None
    kept: Int[Tensor, "b k"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def where(self, keep: Bool[Tensor, "b"], other: "Condition") -> "Condition":
        """Rows of self where keep is true, rows of other elsewhere. `spatial` stays in every row:
        a dropped caption leaves the picture that is to be filled in or enlarged."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.where(keep[:, None], self.pooled, other.pooled)
        return Condition(
            torch.where(keep[:, None, None], self.tokens, other.tokens),
            torch.where(keep[:, None], self.mask, other.mask),
            pooled,
            self.spatial,
        )

    def cat(self, other: "Condition") -> "Condition":
        """Both batches, one behind the other. Where only one has `spatial`, it serves both: the
        null condition of guidance is about the same picture."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.cat([self.pooled, other.pooled])
        first = self.spatial if self.spatial is not None else other.spatial
        second = other.spatial if other.spatial is not None else self.spatial
        spatial = None
        if first is not None and second is not None:
            spatial = torch.cat([first, second])
        return Condition(
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.mask, other.mask]),
            pooled,
            spatial,
        )


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents, each `[b c h w]`; std 0 is a deterministic encoder."""

    mean: Latent
    std: Latent

    def sample(self, noise: Latent) -> Latent:
        """The reparametrised draw  mean + std * noise."""
        return self.mean + self.std * noise


@runtime_checkable
class Network(Protocol):
    """The denoising network. `blocks` are the units that sharding, activation checkpointing and
    regional compile act on."""

    blocks: nn.ModuleList

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        """`[b c h w]`, or `[b 2c h w]` where the variance is learned too."""


def _mix(*values: int) -> int:
    """63 well-mixed bits from integers: the finaliser of SplitMix64, folded over the values."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True)
class Draws:
    """Random numbers for some rows of a global batch, as a function of (seed, step, row).

    The rows of a global batch are numbered 0..total-1 whatever rank holds them, so a row's noise
    is the same on one rank and on many, with and without accumulation, and after a resume.
    `stream` names what is drawn, so that two draws in a step are independent.
    """

    seed: int
    step: int
    rows: Sequence[int]
    total: int
    device: torch.device

    def normal(self, shape: Sequence[int], stream: str) -> Float[Tensor, "b *shape"]:
        """Standard normal numbers, `[len(rows), *shape]`, float32."""
        return self._draw(torch.randn, shape, stream)

    def uniform(self, shape: Sequence[int], stream: str) -> Float[Tensor, "b *shape"]:
        """Uniform numbers in [0, 1), `[len(rows), *shape]`, float32."""
        return self._draw(torch.rand, shape, stream)

    def shared_uniform(self, stream: str) -> float:
        """One number in [0, 1) that every row of the step shares."""
        return _mix(self.seed, self.step, *stream.encode()) / 2**63

    def _draw(self, function: object, shape: Sequence[int], stream: str) -> Tensor:
        generator = torch.Generator(self.device)
        name = _mix(*stream.encode())
        rows = []
        for row in self.rows:
            generator.manual_seed(_mix(self.seed, self.step, row, name))
            rows.append(function(tuple(shape), generator=generator, device=self.device))  # type: ignore[operator]
        return torch.stack(rows)


def draws_for_seeds(seeds: Sequence[int], device: torch.device) -> Draws:
    """Draws for samples that each have a seed of their own: the same seed gives the same numbers
    in any batch, on any rank."""
    return Draws(seed=0, step=0, rows=list(seeds), total=len(seeds), device=device)
