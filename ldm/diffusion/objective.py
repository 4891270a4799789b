"""The training objective: draw a time and a noise, corrupt, predict, compare."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.denoiser import NetworkDenoiser
from ldm.diffusion.schedules import Schedule, corrupt
from ldm.diffusion.targets import Target, compose, determinant
from ldm.diffusion.times import Times, draw_times
from ldm.diffusion.weights import Unit, Weight
from ldm.types import Condition, Draws, Latent, Network, Time


@dataclass(frozen=True)
class Objective:
    """Schedule x target x times x weight: all that training and sampling must agree on."""

    schedule: Schedule
    target: Target
    times: Times
    weight: Weight = field(default_factory=Unit)
    stratified: bool = True

    def __post_init__(self) -> None:
        """Refuse a target from which pure noise cannot be turned into data."""
        last = torch.ones((), dtype=torch.float64)
        solvable = determinant(self.target, self.schedule, last)
        if not (solvable.isfinite() and solvable.abs() > 1e-3):
            raise ValueError(
                f"target {self.target} says nothing of the data at t = 1 on {self.schedule}, "
                "where sampling starts: set target to AngularVelocity() or Data()"
            )

    def __call__(
        self, network: Network, x0: Latent, condition: Condition, draws: Draws
    ) -> Float[Tensor, "b"]:
        """Weighted squared error of each sample, a mean over its elements; `draws` has a row for
        each. A mean over rows is the batch's loss."""
        t = self.draw_times(draws).to(torch.promote_types(x0.dtype, torch.float32))
        noise = draws.normal(x0.shape[1:], "noise").to(x0.dtype)
        prediction = network(corrupt(self.schedule, x0, noise, t), t, condition)
        error = prediction - compose(self.target, self.schedule, x0, noise, t)
        weight = self.weight(self.schedule, self.target, t)
        return weight * error.square().mean(dim=(1, 2, 3))

    def draw_times(self, draws: Draws) -> Time:
        """The times that `self(..., draws)` trains at: the same draws give the same times, so a
        log by time asks here."""
        return draw_times(self.times, self.schedule, draws, stratified=self.stratified)

    def denoiser(self, network: Network) -> NetworkDenoiser:
        """The same schedule and target, read backwards: what a sampler steps with."""
        return NetworkDenoiser(network, self.schedule, self.target)
