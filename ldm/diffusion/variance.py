"""The learned variance of ancestral steps, whose channels a network predicts beside its target.

Nichol & Dhariwal 2021 (arXiv:2102.09672, eq. 14-16), as DiT has it: the log-variance of a step
from t to s lies a share `width` of the way from the posterior's, beta~ (what x_0 leaves open), to
the transition's, beta. With lambda the log-SNR and E = 1 - exp(lambda_t - lambda_s),
    beta = sigma_t^2 E,   beta~ = sigma_s^2 E,   and the mean moves by alpha_s E per unit of x_0.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.schedules import Schedule, columns, log_snr
from ldm.types import Latent, Time


@dataclass(frozen=True)
class LearnedVariance:
    """Trains the width by the variational bound of a chain of `steps` steps, in bits: with the
    squared error it is the hybrid loss, L_simple + L_vlb / steps."""

    steps: int = 1000

    def loss(
        self, schedule: Schedule, x0: Latent, guess: Latent, width: Latent, t: Time
    ) -> Float[Tensor, "b"]:
        """KL(posterior || model) of the step that ends 1/steps before t; `guess` is the network's
        data, without gradient. The chain's last step adds no noise and has no such term."""
        here = t.double().clamp(min=2 / self.steps)
        there = here - 1 / self.steps
        alpha_there, sigma_there = schedule(there)
        _, sigma_here = schedule(here)
        fresh = -torch.expm1(log_snr(schedule, here) - log_snr(schedule, there))
        least = columns((sigma_there.square() * fresh).log()).to(x0)
        most = columns((sigma_here.square() * fresh).log()).to(x0)
        shift = columns(alpha_there * fresh).to(x0) * (x0 - guess)
        wider = width * (most - least)  # the model's log-variance, over the posterior's
        inverse = torch.exp(-wider)
        kl = (wider + inverse - 1 + shift.square() * inverse * torch.exp(-least)) / 2
        bits = kl.mean(dim=(1, 2, 3)) / math.log(2)
        return torch.where(t * self.steps > 1.5, bits, torch.zeros_like(bits))
