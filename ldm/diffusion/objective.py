"""The training objective: draw a time and a noise, corrupt, predict, compare."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.denoiser import NetworkDenoiser
from ldm.diffusion.schedules import Schedule, corrupt
from ldm.diffusion.targets import Target, compose, determinant, solve
from ldm.diffusion.times import LEAST, Times, draw_times
from ldm.diffusion.variance import LearnedVariance
from ldm.diffusion.weights import Unit, Weight
from ldm.types import Condition, Draws, Latent, Network, Time


@dataclass(frozen=True)
class Objective:
    """Schedule x target x times x weight: all that training and sampling must agree on.

    offset_noise adds to the noise one number a channel times this, so that the mean of a picture
    is learned too (Guttenberg 2023, "Diffusion with offset noise"). input_perturbation adds this
    much more noise to x_t and not to the target, as sampling's own errors will (Ning et al. 2023,
    arXiv:2301.11706). With `variance` the network's output has 2c channels.
    """

    schedule: Schedule
    target: Target
    times: Times
    weight: Weight = field(default_factory=Unit)
    stratified: bool = True
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    variance: LearnedVariance | None = None

    def __post_init__(self) -> None:
        self._refuse_unsolvable()
        self._refuse_unbounded()
        for name, value in [
            ("offset_noise", self.offset_noise),
            ("input_perturbation", self.input_perturbation),
        ]:
            if value < 0:
                raise ValueError(f"{name} is {value}, but it is a width: set 0 for none, or 0.1")

    def __call__(
        self, network: Network, x0: Latent, condition: Condition, draws: Draws
    ) -> Float[Tensor, "b"]:
        """Weighted squared error of each sample, a mean over its elements; `draws` has a row for
        each. A mean over rows is the batch's loss."""
        t = self.draw_times(draws).to(torch.promote_types(x0.dtype, torch.float32))
        noise = self._draw_noise(x0, draws)
        x_t = corrupt(self.schedule, x0, self._perturbed(noise, draws), t)
        prediction: Tensor = network(x_t, t, condition)
        extra = torch.zeros_like(t)
        if self.variance is not None:
            prediction, last = prediction.chunk(2, dim=1)
            guess, _ = solve(self.target, self.schedule, prediction.detach(), x_t, t)
            extra = self.variance.loss(self.schedule, x0, guess, (last + 1) / 2, t)
        error = prediction - compose(self.target, self.schedule, x0, noise, t)
        # In float64: a ratio of squares, of which both underflow near t = 0 on curved schedules.
        weight = self.weight(self.schedule, self.target, t.double()).to(t)
        return weight * error.square().mean(dim=(1, 2, 3)) + extra

    def draw_times(self, draws: Draws) -> Time:
        """The times that `self(..., draws)` trains at: the same draws give the same times, so a
        log by time asks here."""
        return draw_times(self.times, self.schedule, draws, stratified=self.stratified)

    def denoiser(self, network: Network) -> NetworkDenoiser:
        """The same schedule and target, read backwards: what a sampler steps with."""
        return NetworkDenoiser(network, self.schedule, self.target, self.variance is not None)

    def _draw_noise(self, x0: Latent, draws: Draws) -> Latent:
        noise = draws.normal(x0.shape[1:], "noise").to(x0.dtype)
        if self.offset_noise > 0:
            offset = draws.normal((x0.shape[1], 1, 1), "offset noise").to(x0.dtype)
            noise = noise + self.offset_noise * offset
        return noise

    def _perturbed(self, noise: Latent, draws: Draws) -> Latent:
        if self.input_perturbation > 0:
            more = draws.normal(noise.shape[1:], "input perturbation").to(noise.dtype)
            noise = noise + self.input_perturbation * more
        return noise

    def _refuse_unsolvable(self) -> None:
        """Pure noise and the prediction there must give the data: sampling starts with them. DDPM's
        own table multiplies an error by 160 there."""
        last = torch.ones((), dtype=torch.float64)
        _, sigma = self.schedule(last)
        solvable = determinant(self.target, self.schedule, last)
        if not (solvable.isfinite() and sigma < 500 * solvable.abs()):
            raise ValueError(
                f"target {self.target} says nothing of the data at t = 1 on {self.schedule}, "
                "where sampling starts: set target to AngularVelocity() or Data()"
            )

    def _refuse_unbounded(self) -> None:
        """The loss of a network that predicts nothing must have a mean: it has none if ever more
        of it comes from ever fewer times, the closer one looks. And float32 must hold the weight of
        the earliest time that is drawn."""
        coarse, fine = (self._mean_of_nothing(n) for n in (64, 4096))
        earliest = self.times.quantile(torch.tensor(LEAST, dtype=torch.float64), self.schedule)
        heaviest = self.weight(self.schedule, self.target, earliest)
        if not (fine < 5 * coarse and heaviest < torch.finfo(torch.float32).max):
            raise ValueError(
                f"weight {self.weight} on target {self.target} grows without bound over "
                f"{self.times}, and a few samples would rule the loss: set target to "
                "AngularVelocity(), or weight to Unit() or MinSNR()"
            )

    def _mean_of_nothing(self, n: int) -> float:
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        t = self.times.quantile(u, self.schedule)
        a, b = self.target.coefficients(self.schedule, t)
        loss = self.weight(self.schedule, self.target, t) * (a.square() + b.square())
        return loss.mean().item()
