"""Guidance: denoisers around denoisers, which push an estimate away from a worse one."""

from dataclasses import dataclass

from ldm.diffusion.denoiser import Denoiser, Estimate
from ldm.diffusion.schedules import Schedule
from ldm.types import Condition, Latent, Time


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); scale 1 is no guidance.

    `null` is the empty condition, or a negative prompt's; one row for each sample.
    """

    denoiser: Denoiser
    null: Condition
    scale: float

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        """One pass at scale 1, otherwise one pass of twice the batch."""
        if self.scale == 1:
            return self.denoiser(x_t, t, condition)
        both = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), condition.cat(self.null))
        x0, noise = (bad + self.scale * (good - bad) for good, bad in (e.chunk(2) for e in both))
        return Estimate(x0, noise)
