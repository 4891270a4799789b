"""The 1000-step tables of DDPM and Stable Diffusion, continuous in between.

Step i of the table (0 ... N-1) stands at t = (i + 1) / N, so that t = 0 is clean data and t = 1
the table's last step; a published network that wants a step number gets i = N t - 1. Between the
steps log(alpha^2) is linear, hence exact at every step.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Betas:
    """Variance preserving, alpha^2 the running product of 1 - beta_i, with beta_i^(1/power) even
    from first to last.

    power 1 is DDPM's linear table (Ho et al. 2020, arXiv:2006.11239); power 2 is the scaled-linear
    one of latent diffusion: Stable Diffusion has first = 0.00085, last = 0.012.
    """

    first: float = 1e-4
    last: float = 0.02
    power: float = 1.0
    steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.last < 1:
            raise ValueError(
                f"betas run from {self.first} to {self.last}, but each is a share of variance and "
                "none may fall: set 0 < first <= last < 1"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        value, _ = self._log_square(t)
        return (value / 2).exp(), torch.expm1(value).abs().sqrt()

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self._log_square(t)
        alpha, sigma = self(t)
        return slope / 2 * alpha, -slope / 2 * value.exp() / sigma

    def time(self, log_snr: Tensor) -> Tensor:
        falls = -_log_alpha_squares(self, log_snr.dtype, log_snr.device)
        wanted = -torch.nn.functional.logsigmoid(log_snr).clamp(min=-falls[-1])
        i = (torch.searchsorted(falls, wanted.contiguous()) - 1).clamp(0, self.steps - 1)
        return (i + (wanted - falls[i]) / (falls[i + 1] - falls[i])) / self.steps

    def _log_square(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log(alpha^2) and its slope."""
        table = _log_alpha_squares(self, t.dtype, t.device)
        position = t * self.steps
        i = position.detach().long().clamp(0, self.steps - 1)
        rise = table[i + 1] - table[i]
        return table[i] + (position - i) * rise, rise * self.steps


@lru_cache(maxsize=64)
def _log_alpha_squares(betas: Betas, dtype: torch.dtype, device: torch.device) -> Tensor:
    """log(alpha^2) after 0 ... N steps: kept, for it is asked at each training step."""
    first, last = betas.first ** (1 / betas.power), betas.last ** (1 / betas.power)
    root = torch.linspace(first, last, betas.steps, dtype=torch.float64)
    falls = torch.log1p(-(root**betas.power)).cumsum(0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), falls]).to(device, dtype)
