"""The learned uncertainty of the loss at each time: EDM2's weighting, and the only thing here
with parameters beside the network's. It lives beside the network in training, not in the
objective, and sampling never sees it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.types import Time


class LearnedUncertainty(nn.Module):
    """loss exp(-u(t)) + u(t), with u a linear map of random Fourier features of t.

    At its optimum exp(u) is the mean loss at t, so all times pull on the network alike (Karras et
    al. 2023, arXiv:2312.02696, eq. 20-22). It starts at u = 0, which changes nothing.
    """

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # alike on all ranks and after a resume
        self.frequencies: Tensor
        self.phases: Tensor
        turns = 2 * math.pi
        self.register_buffer("frequencies", turns * torch.randn(features, generator=generator))
        self.register_buffer("phases", turns * torch.rand(features, generator=generator))
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, loss: Float[Tensor, "b"], t: Time) -> Float[Tensor, "b"]:
        """The loss to train on; t is what `Objective.draw_times` gives for the same draws."""
        features = math.sqrt(2) * torch.cos(t[:, None] * self.frequencies + self.phases)
        uncertainty = self.linear(features).squeeze(1)
        return loss * torch.exp(-uncertainty) + uncertainty
