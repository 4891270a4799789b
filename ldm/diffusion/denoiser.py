"""A denoiser turns (x_t, t, condition) into an estimate of the data and of the noise."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from ldm.diffusion.schedules import Schedule
from ldm.diffusion.targets import Target, solve
from ldm.types import Condition, Latent, Network, Time


class Estimate(NamedTuple):
    """What is behind x_t = alpha x0 + sigma noise."""

    x0: Latent
    noise: Latent


@runtime_checkable
class Denoiser(Protocol):
    """The one thing a sampler asks for; guidance and constraints are denoisers around one."""

    @property
    def schedule(self) -> Schedule:
        """The schedule it was trained on, so that a sampler cannot step on another."""

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        """`t` may live on the CPU, where reading it never waits for an accelerator."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """A trained network, read through the target that it was trained on."""

    network: Network
    schedule: Schedule
    target: Target

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        t = t.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32), non_blocking=True)
        prediction = self.network(x_t, t, condition)
        return Estimate(*solve(self.target, self.schedule, prediction, x_t, t))
