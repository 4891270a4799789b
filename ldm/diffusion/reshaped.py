"""Schedules around schedules: another speed, another width, another end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Times moved towards the noise for shift > 1 (Esser et al. 2024, arXiv:2403.03206, eq. 23):
    on a rectified flow, the signal-to-noise ratio divided by shift^2."""
    return shift * t / (shift * t + (1 - t))


def resolution_shift(cells: int, base_cells: int) -> float:
    """The shift under which latents of `cells` = h w are as uncertain at each t as latents of
    `base_cells` are unshifted: the root of their ratio (same equation)."""
    return (cells / base_cells) ** 0.5


@dataclass(frozen=True)
class Shifted:
    """Any schedule at SD3's shifted time; the network still sees t, not the shifted one."""

    schedule: Schedule
    shift: float

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(
                f"shift is {self.shift}, but it multiplies sigma / alpha: set a positive shift, "
                "1 for none, 3 for SD3 at 1024 pixels"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule(shift_time(t, self.shift))

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = self.schedule.slope(shift_time(t, self.shift))
        speed = self.shift / (self.shift * t + (1 - t)).square()
        return speed * d_alpha, speed * d_sigma

    def time(self, log_snr: Tensor) -> Tensor:
        return shift_time(self.schedule.time(log_snr), 1 / self.shift)


@dataclass(frozen=True)
class UnitVariance:
    """Any schedule, divided by the width of its x_t.

    The signal-to-noise ratio stays, so it is the same diffusion; a network that sees this x_t
    needs no input scaling (EDM's c_in, Karras et al. 2022, arXiv:2206.00364, table 1).
    """

    schedule: Schedule

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        width = torch.hypot(alpha, sigma)
        return alpha / width, sigma / width

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        d_alpha, d_sigma = self.schedule.slope(t)
        turn = (d_sigma * alpha - d_alpha * sigma) / torch.hypot(alpha, sigma) ** 3
        return -turn * sigma, turn * alpha

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr)


@dataclass(frozen=True)
class ZeroTerminalSNR:
    """A variance-preserving schedule whose alpha is moved and stretched to end at 0 (Lin et al.
    2023, arXiv:2305.08891, algorithm 1).

    alpha at `anchor` stays, and so does all before it; 0.001 is the first step of a 1000-step
    table, which makes this the published rescaling.
    """

    schedule: Schedule
    anchor: float = 0.001

    def __post_init__(self) -> None:
        alpha, sigma = self.schedule(torch.tensor([0.3, 1.0], dtype=torch.float64))
        if (torch.hypot(alpha, sigma) - 1).abs().max() > 1e-9:
            raise ValueError(
                f"{self.schedule} does not preserve variance, so its alpha cannot be rescaled "
                "alone: set ZeroTerminalSNR around Betas, Cosine, Sigmoid or UnitVariance"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        scale, end, moved = self._constants()
        new_alpha = scale * (alpha - end)
        one_less = scale * sigma.square() / (1 + alpha) + moved  # 1 - new_alpha, precisely
        new_sigma = (one_less * (1 + new_alpha)).clamp(min=0).sqrt()
        early = t < self.anchor
        return torch.where(early, alpha, new_alpha), torch.where(early, sigma, new_sigma)

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = self.schedule.slope(t)
        alpha, sigma = self(t)
        new = self._constants()[0] * d_alpha
        early = t < self.anchor
        return torch.where(early, d_alpha, new), torch.where(early, d_sigma, -new * alpha / sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        scale, end, moved = self._constants()
        new_alpha = torch.sigmoid(log_snr).sqrt()
        one_less = (torch.sigmoid(-log_snr) / (1 + new_alpha) - moved) / scale  # 1 - alpha
        alpha = new_alpha / scale + end
        inner = 2 * alpha.log() - torch.log(one_less * (1 + alpha))
        late = self.schedule.time(inner)
        return torch.where(late < self.anchor, self.schedule.time(log_snr), late)

    def _constants(self) -> tuple[float, float, float]:
        """(scale, alpha(1), and what 1 - alpha gains beside its scaling)."""
        alphas, sigmas = self.schedule(torch.tensor([self.anchor, 1.0], dtype=torch.float64))
        (kept, end), sigma = alphas.tolist(), sigmas[0].item()
        scale = kept / (kept - end)
        return scale, end, -end * sigma**2 / ((1 + kept) * (kept - end))
