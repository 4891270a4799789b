"""Bottlenecks with a finite number of codes. Rounding has no gradient; the straight-through
estimate hands that of the rounded latent to the latent unchanged (van den Oord et al. 2017).

A quantizer's `prepare` brings an encoder's output to the range in which codes lie; what it returns
is the continuous latent that a second stage learns. Called on that, it rounds.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import ranks
from ldm.models.autoencoder import Latent, Quantised
from ldm.models.layers import at_least_float32, without_autocast

Vectors = Float[Tensor, "n c"]


@runtime_checkable
class Quantizer(Protocol):
    """A bottleneck over `channels` latent channels with `entries` codes."""

    channels: int
    entries: int

    def prepare(self, latent: Latent) -> Latent:
        """Continuous, in the range of the codes."""

    def __call__(self, latent: Latent) -> Quantised:
        """The nearest codes of a prepared latent."""


class VectorQuantizer(nn.Module):
    """The nearest entry of a codebook that follows the running mean of what it is chosen for.

    `decay` is of those running means; `commitment` weights the squared distance that draws the
    encoder to its entries. An entry chosen less than `revive_below` times its fair share moves to a
    vector of the current batch; so does every entry in the first batch. With `cosine` latents and
    entries have length 1 (Yu et al. 2022). The codebook is no parameter, and is the same on all
    ranks. In training mode it remembers what it saw, and learns from that when `stepped` says that
    the optimizer has made a step: so turns of an accumulated batch count as one.
    """

    codebook: Tensor
    counts: Tensor
    updates: Tensor

    def __init__(
        self,
        entries: int,
        channels: int,
        *,
        decay: float = 0.95,
        commitment: float = 0.25,
        revive_below: float = 0.1,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"autoencoder.quantizer.decay={decay}: give a number in [0, 1)")
        if entries < 2:
            raise ValueError(
                f"autoencoder.quantizer.entries={entries}: a codebook needs 2 entries or more"
            )
        if cosine and channels < 2:
            raise ValueError(
                f"autoencoder.quantizer.channels={channels} with cosine=true: one number has no "
                "direction that could be learnt; give 2 channels or more"
            )
        self.entries, self.channels = entries, channels
        self.decay, self.commitment = decay, commitment
        self.revive_below, self.cosine = revive_below, cosine
        codebook = torch.randn(entries, channels)
        self.register_buffer("codebook", F.normalize(codebook) if cosine else codebook)
        self.register_buffer("counts", torch.zeros(entries))  # running; 0 before the first batch
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._seen: list[tuple[Tensor, Tensor]] = []  # vectors and their codes since the last step

    def prepare(self, latent: Latent) -> Latent:
        """Length 1 where similarity is a cosine, else as it is."""
        return F.normalize(latent, dim=1) if self.cosine else latent

    def forward(self, latent: Latent) -> Quantised:
        """Codes `[b h w]`; the penalty is commitment * mean squared distance to the entries."""
        b, c, h, w = latent.shape
        if c != self.channels:
            raise ValueError(
                f"the codebook has entries of {self.channels} numbers, latents have {c} channels: "
                "set autoencoder.quantizer.channels to that, or give latents of this autoencoder"
            )
        vectors = latent.movedim(1, -1).reshape(-1, c)
        if self.training and not bool(self.counts.any()):
            self._revive(
                vectors.detach().to(self.codebook), torch.ones_like(self.counts, dtype=torch.bool)
            )
        codes = self.nearest(vectors)
        chosen = self.codebook[codes].to(latent).view(b, h, w, c).movedim(-1, 1)
        penalty = self.commitment * (latent - chosen).square().mean()
        if self.training:
            self._seen.append((vectors.detach().to(self.codebook), codes))
        return Quantised(latent + (chosen - latent).detach(), codes.view(b, h, w), penalty)

    @torch.no_grad()
    def nearest(self, vectors: Vectors) -> Int[Tensor, "n"]:
        """Index of the entry at the smallest Euclidean distance, the first of equals."""
        with without_autocast(vectors.device):
            book = self.codebook.to(vectors.dtype)
            distance = book.square().sum(dim=1) - 2 * vectors @ book.T
            return distance.argmin(dim=1)

    @torch.no_grad()
    def stepped(self) -> None:
        """Move entries to the running means of the vectors since the last step, of all ranks; a
        broken batch teaches nothing."""
        if not self._seen:
            return
        vectors, codes = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        hits = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)
        ranks.add(hits, sums)
        if not bool(torch.isfinite(sums).all()):
            return
        rate = 1 - self.decay
        kept, new = self.decay * self.counts, rate * hits
        moved = self.codebook * kept[:, None] + rate * sums
        moved = torch.where(
            (hits > 0)[:, None], moved / (kept + new).clamp(min=1e-12)[:, None], self.codebook
        )
        self.codebook.copy_(F.normalize(moved, dim=1) if self.cosine else moved)
        self.counts.copy_(kept + new)
        self.updates += 1
        self._revive(vectors, self.counts < self.revive_below * hits.sum() / self.entries)

    @torch.no_grad()
    def _revive(self, vectors: Vectors, dead: Tensor) -> None:
        """Put each dead entry on a vector of the batch, and count it as used its fair share.
        Which vector is a function of the number of updates, so that ranks and resumes agree."""
        generator = torch.Generator().manual_seed(int(self.updates))
        places = torch.randint(len(vectors), (self.entries,), generator=generator)
        fresh = vectors[places.to(vectors.device)]
        if (world := ranks.count()) > 1:  # entry i takes rank (i mod world)'s vector
            everyone = [torch.empty_like(fresh) for _ in range(world)]
            distributed.all_gather(everyone, fresh)
            turn = torch.arange(self.entries, device=fresh.device)
            fresh = torch.stack(everyone)[turn % world, turn]
        if not bool(torch.isfinite(fresh).all()):
            return
        share = len(vectors) * ranks.count() / self.entries
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.counts.masked_fill_(dead, share)


class FiniteScalarQuantizer(nn.Module):
    """Each channel rounded to one of its few levels, so that the codes are a grid and there is no
    codebook to learn (Mentzer et al. 2024). `levels` has a number for each latent channel.

    Channels that tell much the same leave the corners of the grid empty. `diversity` weights what
    the entropy of the codes' shares lacks (Yu et al. 2024, MAGVIT-v2, of each turn by itself), as a
    part of the most that it can be, 0..1; for grids with fewer codes than a turn has vectors.
    """

    widths: Tensor
    offset: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int], *, diversity: float = 0.0) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(
                f"autoencoder.quantizer.levels={list(levels)}: give 2 levels or more a channel"
            )
        self.channels, self.entries = len(levels), math.prod(levels)
        self.levels, self.diversity = tuple(levels), diversity
        count = torch.tensor(levels)[:, None, None]
        strides = torch.cumprod(torch.tensor([1, *levels[:-1]]), dim=0)[:, None, None]
        # integers -w..w-1 (even number of levels) or -w..w (odd)
        self.register_buffer("widths", (count // 2).float(), persistent=False)
        self.register_buffer("offset", 0.5 * (1 - count % 2).float(), persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def prepare(self, latent: Latent) -> Latent:
        """Within the outermost levels, scaled so that these lie near -1 and 1."""
        reach = (self.widths - self.offset) * (1 + 1e-3)
        start = torch.atanh(self.offset / reach)
        return (torch.tanh(latent + start) * reach - self.offset) / self.widths

    def forward(self, latent: Latent) -> Quantised:
        """Codes `[b h w]` in 0..entries-1, the nearest; in training the penalty of `diversity`."""
        if latent.shape[1] != self.channels:
            raise ValueError(
                f"there are levels for {self.channels} channels, latents have {latent.shape[1]}: "
                "give autoencoder.quantizer.levels as many, or latents of this autoencoder"
            )
        scaled = latent * self.widths
        most = self.widths - 2 * self.offset  # a latent that was made or moved may lie outside
        rounded = torch.maximum(torch.minimum(scaled.round(), most), -self.widths)
        codes = ((rounded + self.widths).long() * self.strides).sum(dim=1)
        penalty = (
            self.diversity * self._uneven(scaled) if self.training and self.diversity else None
        )
        return Quantised((scaled + (rounded - scaled).detach()) / self.widths, codes, penalty)

    def _uneven(self, scaled: Tensor) -> Float[Tensor, ""]:
        """1 - entropy / log(entries) of the codes' shares, to which each vector gives by nearness:
        exp(-2 distance^2), level by level, so that there is a gradient."""
        with without_autocast(scaled.device):
            vectors = at_least_float32(scaled).movedim(1, -1).reshape(-1, self.channels)
            near = []
            for channel, (count, vector) in enumerate(zip(self.levels, vectors.T, strict=True)):
                steps = torch.arange(count, device=vector.device) - self.widths[channel]
                near.append((-2 * (vector[:, None] - steps.flatten()).square()).softmax(dim=1))
            # Levels are chosen independently, so the mean over vectors of the whole grid is one
            # product of two halves of it.
            half = self.channels // 2
            one, other = _grid(near[:half], vectors), _grid(near[half:], vectors)
            shares = one.T @ other / len(vectors)
            logs = shares.clamp(min=1e-9).log()  # an empty code has a slope as well
            return 1 + (shares * logs).sum() / math.log(self.entries)


def _grid(near: Sequence[Tensor], vectors: Vectors) -> Float[Tensor, "n e"]:
    """The product over channels of each vector's shares of the levels."""
    grid = torch.ones_like(vectors[:, :1])
    for shares in near:
        grid = (grid[:, :, None] * shares[:, None]).flatten(1)
    return grid
