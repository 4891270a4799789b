"""A denoiser turns (x_t, t, condition) into an estimate of the data and of the noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule, columns
from ldm.diffusion.targets import Target, solve
from ldm.types import Condition, Latent, Network, Time


class Estimate(NamedTuple):
    """What is behind x_t = alpha x0 + sigma noise.

    `width`, where the network learned it, says how much noise ancestral sampling adds: 0 is the
    least that the process allows, 1 the most (variance.py).
    """

    x0: Latent
    noise: Latent
    width: Latent | None = None


@runtime_checkable
class Denoiser(Protocol):
    """The one thing a sampler asks for; guidance and constraints are denoisers around one."""

    @property
    def schedule(self) -> Schedule:
        """The schedule it was trained on, so that a sampler cannot step on another."""

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        """`t` may live on the CPU, where reading it never waits for an accelerator."""


def beside(x: Latent, t: Time) -> Time:
    """t on the device of x, in at least single precision."""
    return t.to(x.device, torch.promote_types(x.dtype, torch.float32), non_blocking=True)


def with_data(schedule: Schedule, x_t: Latent, t: Time, x0: Latent) -> Estimate:
    """The estimate whose data is x0: the noise is what is left of x_t."""
    alpha, sigma = schedule(columns(beside(x_t, t)))
    return Estimate(x0, (x_t - alpha * x0) / sigma)


@dataclass(frozen=True)
class NetworkDenoiser:
    """A trained network, read through the target that it was trained on; `learned_width` if its
    output has the channels of a learned variance behind those of the target."""

    network: Network
    schedule: Schedule
    target: Target
    learned_width: bool = False

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        t = beside(x_t, t)
        prediction: Tensor = self.network(x_t, t, condition)
        width = None
        if self.learned_width:
            prediction, last = prediction.chunk(2, dim=1)
            width = (last + 1) / 2
        x0, noise = solve(self.target, self.schedule, prediction, x_t, t)
        return Estimate(x0, noise, width)


Watch: TypeAlias = Callable[[Latent, Time, Estimate], None]


@dataclass(frozen=True)
class Watched:
    """Shows each pass to a watcher, which gets (x_t, t, estimate): a trajectory, for example."""

    denoiser: Denoiser
    watch: Watch

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        estimate = self.denoiser(x_t, t, condition)
        self.watch(x_t, t, estimate)
        return estimate


@dataclass(frozen=True)
class Keeping:
    """Inpainting: where `keep` is 1, the data is known to be `latent`.

    The known data replaces its estimate, so x_t there stays that latent under its own noise and
    the last step lands on it exactly, with every sampler; the rest is denoised to fit it.
    """

    denoiser: Denoiser
    latent: Latent
    keep: Tensor  # float, 0 ... 1, [b 1 h w] or [b c h w]; b may be 1

    def __post_init__(self) -> None:
        if self.keep.shape[1:] not in ((1, *self.latent.shape[2:]), self.latent.shape[1:]) or (
            len(self.keep) not in (1, len(self.latent))
        ):
            raise ValueError(
                f"the mask is {list(self.keep.shape)} and the latent {list(self.latent.shape)}: "
                "set a mask of the latent's rows and columns, one cell for each of its cells"
            )

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        free = self.denoiser(x_t, t, condition)
        x0 = self.keep * self.latent + (1 - self.keep) * free.x0
        return with_data(self.schedule, x_t, t, x0)._replace(width=free.width)
