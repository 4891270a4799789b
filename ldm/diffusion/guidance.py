"""Guidance: denoisers around denoisers, which push an estimate away from a worse one."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser, Estimate, with_data
from ldm.diffusion.schedules import Schedule, columns
from ldm.types import Condition, Latent, Time


@runtime_checkable
class Push(Protocol):
    """How far, and along what, the good estimate of the data moves away from the bad one."""

    def __call__(self, good: Latent, bad: Latent, scale: float) -> Latent:
        """The guided data; scale 1 stays at good."""


@dataclass(frozen=True)
class Straight:
    """bad + scale (good - bad) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6)."""

    def __call__(self, good: Latent, bad: Latent, scale: float) -> Latent:
        return bad + scale * (good - bad)


@dataclass(frozen=True)
class Rescaled:
    """Straight, with a share of each sample's standard deviation put back to the good estimate's,
    against over-exposure (Lin et al. 2023, arXiv:2305.08891, eq. 14-16, here on the data)."""

    share: float = 0.7

    def __post_init__(self) -> None:
        _between_0_and_1("push.share", self.share)

    def __call__(self, good: Latent, bad: Latent, scale: float) -> Latent:
        guided = Straight()(good, bad, scale)
        wanted, got = (x.std(dim=(1, 2, 3), keepdim=True) for x in (good, guided))
        return guided * (self.share * wanted / got + 1 - self.share)


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance: only what is orthogonal to the good estimate is added in full,
    the parallel part, which saturates colours, by the share `parallel`, and no push is longer
    than `radius` before scaling (Sadat et al. 2024, arXiv:2410.02416, algorithm 1, whose momentum
    is Guidance's)."""

    parallel: float = 0.0
    radius: float = float("inf")

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(
                f"push.radius is {self.radius}, which leaves no push: set it above 0, or .inf"
            )

    def __call__(self, good: Latent, bad: Latent, scale: float) -> Latent:
        push = good - bad
        length = torch.linalg.vector_norm(push, dim=(1, 2, 3), keepdim=True)
        push = push * (self.radius / length).clamp(max=1)
        direction = good / torch.linalg.vector_norm(good, dim=(1, 2, 3), keepdim=True)
        along = (push * direction).sum(dim=(1, 2, 3), keepdim=True) * direction
        return good + (scale - 1) * (push - along + self.parallel * along)


@dataclass(frozen=True)
class Guidance:
    """The manner of guidance, whatever its scale.

    It acts for t in [low, high] only (Kynkaanniemi et al. 2024, arXiv:2404.07724), along `push`.
    `push_momentum` is the share of earlier pushes that is added to each, APG's being negative. With
    `weaker`, a worse network on the same schedule, the bad estimate is its own: autoguidance
    (Karras et al. 2024, arXiv:2406.02507). `limit` thresholds the guided data (Thresholded).
    """

    push: Push = field(default_factory=Straight)
    low: float = 0.0
    high: float = 1.0
    push_momentum: float = 0.0
    limit: float | None = None
    weaker: Denoiser | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"guidance from t = {self.low} to {self.high} is no interval in [0, 1]: "
                "set 0 <= guidance.low <= guidance.high <= 1"
            )
        if not -1 < self.push_momentum < 1:
            raise ValueError(
                f"guidance.push_momentum is {self.push_momentum}, and pushes would grow without "
                "end: set it between -1 and 1, such as -0.5; 0 is none"
            )
        if self.limit is not None and not self.limit > 0:
            raise ValueError(
                f"guidance.limit is {self.limit}, which leaves no data: set guidance.limit to e.g. "
                "4, or null for none"
            )


class _Momentum:
    """The pushes of one run of a sampler, each with a share of those before it."""

    def __init__(self) -> None:
        self._sum: Latent | None = None
        self._t = 0.0

    def __call__(self, push: Latent, share: float, t: Time) -> Latent:
        """A rise in t begins another run."""
        now = float(t.max())
        if self._sum is not None and now <= self._t:
            push = push + share * self._sum
        self._sum, self._t = push, now
        return push


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); scale 1 is none.

    `null` is the empty condition, or a negative prompt's: one row for each sample. A weaker
    network is told `null` too, which for autoguidance is the condition itself.
    """

    denoiser: Denoiser
    null: Condition
    scale: float
    manner: Guidance = field(default_factory=Guidance)
    _momentum: _Momentum = field(default_factory=_Momentum, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(
                f"scale is {self.scale}, but guidance pushes towards the condition: "
                "set scale to 1 for none, and to 2 ... 10 for more"
            )
        weaker = self.manner.weaker
        if weaker is not None and weaker.schedule != self.schedule:
            raise ValueError(
                f"the weaker network's schedule is {weaker.schedule}, the network's "
                f"{self.schedule}: set weaker to a checkpoint of the same schedule"
            )

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        """One pass at scale 1 or outside the interval, otherwise one of twice the batch."""
        inside = (self.manner.low <= t) & (t <= self.manner.high)
        if self.scale == 1 or not inside.any():
            return self.denoiser(x_t, t, condition)
        if len(self.null) != len(condition):
            raise ValueError(
                f"the null condition has {len(self.null)} rows for {len(condition)} samples: "
                "set one row for each"
            )
        good, bad = self._pair(x_t, t, condition)
        worse = bad.x0
        if self.manner.push_momentum != 0:
            worse = good.x0 - self._momentum(good.x0 - bad.x0, self.manner.push_momentum, t)
        x0 = self.manner.push(good.x0, worse, self.scale)
        if not inside.all():
            x0 = torch.where(columns(inside).to(x0.device), x0, good.x0)
        return with_data(self.schedule, x_t, t, x0)._replace(width=good.width)

    def _pair(self, x_t: Latent, t: Time, condition: Condition) -> tuple[Estimate, Estimate]:
        """The good and the bad estimate."""
        if self.manner.weaker is not None:
            return self.denoiser(x_t, t, condition), self.manner.weaker(x_t, t, self.null)
        both = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), condition.cat(self.null))
        n = len(x_t)

        def rows(part: slice) -> Estimate:
            width: Tensor | None = None if both.width is None else both.width[part]
            return Estimate(both.x0[part], both.noise[part], width)

        return rows(slice(n)), rows(slice(n, None))


@dataclass(frozen=True)
class Thresholded:
    """Dynamic thresholding: each sample's data is squeezed so that all but the largest 1 - share
    of its values lie within +-limit (Saharia et al. 2022, arXiv:2205.11487, section 2.3, where
    pixels give limit 1; a latent has no such bound, and 3 or 4 deviations do)."""

    denoiser: Denoiser
    limit: float
    share: float = 0.995

    def __post_init__(self) -> None:
        _between_0_and_1("share", self.share)
        if self.limit <= 0:
            raise ValueError(f"limit is {self.limit}, which leaves no data: set limit to e.g. 4")

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        free = self.denoiser(x_t, t, condition)
        bound = torch.quantile(free.x0.abs().flatten(1), self.share, dim=1)
        bound = columns(bound.clamp(min=self.limit))
        x0 = free.x0.clamp(-bound, bound) * (self.limit / bound)
        return with_data(self.schedule, x_t, t, x0)._replace(width=free.width)


def _between_0_and_1(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, but it is a share: set it between 0 and 1")
