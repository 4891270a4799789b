"""What tells whether latents are good to diffuse in. Each adds up exactly over ranks."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from ldm.metrics.exact import on_grid

Latent = Float[Tensor, "b c h w"]


class HighFrequencyShare(Metric):
    """The share of a latent channel's power, without its mean, at more than half the highest
    frequency in either direction, averaged over channels. White noise has about 3/4; what is much
    below diffuses well (Skorokhodov et al. 2025)."""

    full_state_update = False
    high: Tensor
    total: Tensor

    def __init__(self, channels: int, **arguments: Any) -> None:  # torchmetrics' own arguments
        super().__init__(**arguments)
        self.add_state("high", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, latent: Latent) -> None:
        """Takes in a batch."""
        latent = latent.double() - latent.double().mean(dim=(2, 3), keepdim=True)
        power = torch.fft.fft2(latent, norm="ortho").abs().square().sum(dim=0)
        rows, columns = (torch.fft.fftfreq(n, device=latent.device).abs() for n in power.shape[1:])
        high = (rows[:, None] > 0.25) | (columns > 0.25)
        self.high += on_grid(power[:, high].sum(dim=1))
        self.total += on_grid(power.sum(dim=(1, 2)))

    def compute(self) -> Float[Tensor, ""]:
        """In [0, 1]; a channel without power, as of latents of one cell, has none up there."""
        return (self.high / self.total.clamp(min=1e-30)).mean()


class ChannelKL(Metric):
    """Mean nats each latent channel carries a cell, `[c]`. A channel below 0.01 says nothing: the
    decoder does without it."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, channels: int, **arguments: Any) -> None:  # torchmetrics' own arguments
        super().__init__(**arguments)
        self.add_state("total", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, nats: Latent) -> None:
        """Takes in a batch of KL terms."""
        self.total += on_grid(nats.double().sum(dim=(0, 2, 3)))
        self.count += nats[:, 0].numel()

    def compute(self) -> Float[Tensor, "c"]:
        """Nats, float64."""
        return self.total / self.count


class CodebookUse(Metric):
    """How often each of `entries` codes is chosen."""

    full_state_update = False
    counts: Tensor

    def __init__(self, entries: int, **arguments: Any) -> None:  # torchmetrics' own arguments
        super().__init__(**arguments)
        self.add_state("counts", torch.zeros(entries, dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, codes: Int[Tensor, "b h w"]) -> None:
        """Takes in a batch."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`used`, the share of entries chosen at least once, and `perplexity`, exp of the entropy:
        as many codes used evenly would carry as much. Both float64."""
        share = self.counts.double() / self.counts.sum()
        return {
            "used": (self.counts > 0).double().mean(),
            "perplexity": torch.special.entr(share).sum().exp(),
        }
