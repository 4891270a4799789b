"""The critic in training: when it joins, how hard it presses, what keeps it calm."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import ranks
from ldm.models.critic import Adversary, Logits, frozen
from ldm.models.layers import Picture, at_least_float32


class Opinion(NamedTuple):
    """What a critic thinks of each picture and of its reconstruction: their mean logits, and the
    share of both's patches that it tells right."""

    real: Float[Tensor, "b"]
    fake: Float[Tensor, "b"]
    accuracy: Float[Tensor, "b"]


@dataclass(frozen=True)
class Verdict:
    """The critic's loss, and what it thought."""

    loss: Float[Tensor, ""]
    opinion: Opinion


class CriticLoss(nn.Module):
    """A critic that starts to learn at step `start`, and whose say grows from 0 to `weight` over
    the `ramp` steps after: a fresh critic knows nothing worth following.

    With `adaptive` its term is scaled so that at the decoder's last layer its gradient is as long
    as the reconstruction's, at most `most` times (VQGAN, eq. 7). `r1` weights the squared gradient
    of real logits (Mescheder et al. 2018), `lecam` the distance of each side's logits from the
    other's running mean (Tseng et al. 2021, eq. 4), which moves once an optimizer step (`stepped`).
    Holds the trained critic and those two means.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(
        self,
        network: nn.Module,
        adversary: Adversary,
        *,
        weight: float = 0.5,
        start: int = 0,
        ramp: int = 0,
        adaptive: bool = True,
        most: float = 100.0,
        r1: float = 0.0,
        lecam: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.adversary = adversary
        self.weight, self.start, self.ramp = weight, start, ramp
        self.adaptive, self.most = adaptive, most
        self.r1, self.lecam = r1, lecam
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        # Both sides' means in this step's turns. No buffer: DDP would give all ranks rank 0's.
        self._turns: list[Tensor] = []

    def active(self, step: int) -> bool:
        """Whether the critic learns at this optimizer step."""
        return step >= self.start

    def pressure(self, step: int) -> float:
        """The weight of its term in the autoencoder's loss at this optimizer step."""
        if not self.active(step):
            return 0.0
        return self.weight * min(1.0, (step - self.start) / self.ramp if self.ramp else 1.0)

    def fooled(self, reconstruction: Picture) -> Float[Tensor, ""]:
        """The autoencoder's term: no gradient reaches the critic's weights."""
        with frozen(self.network) as network:
            return self.adversary.fooled(at_least_float32(network(reconstruction)))

    def caught(self, image: Picture, reconstruction: Picture) -> Verdict:
        """The critic's own term: no gradient reaches the autoencoder."""
        image = image.detach().requires_grad_(self.r1 > 0)
        real = at_least_float32(self.network(image))
        fake = at_least_float32(self.network(reconstruction.detach()))
        loss = self.adversary.caught(real, fake)
        if self.r1:
            (slope,) = torch.autograd.grad(real.sum(), image, create_graph=True)
            loss = loss + 0.5 * self.r1 * slope.square().sum(dim=(1, 2, 3)).mean()
        if self.lecam:
            self._remember(real, fake)
            spread = (real - self.fake_mean).square().mean() + (
                fake - self.real_mean
            ).square().mean()
            loss = loss + self.lecam * spread
        return Verdict(loss, _opinion(real.detach(), fake.detach()))

    @torch.no_grad()
    def opinion(self, image: Picture, reconstruction: Picture) -> Opinion:
        """Without learning anything."""
        return _opinion(
            at_least_float32(self.network(image)), at_least_float32(self.network(reconstruction))
        )

    @torch.no_grad()
    def stepped(self) -> None:
        """The running means follow what all turns and ranks saw in the optimizer step that was just
        made; without LeCAM, or before the critic joins, there is nothing to follow."""
        if not self._turns:
            return
        turns = torch.stack(self._turns).sum(0)
        self._turns.clear()
        ranks.add(turns)
        share = 0.01 * turns[2].clamp(max=1)
        means = turns[:2] / turns[2].clamp(min=1)
        self.real_mean.lerp_(means[0], share)
        self.fake_mean.lerp_(means[1], share)

    @torch.no_grad()
    def _remember(self, real: Logits, fake: Logits) -> None:
        """A non-finite turn is not remembered."""
        seen = torch.stack([real.mean(), fake.mean(), torch.ones_like(real.mean())])
        self._turns.append(seen.where(seen.isfinite().all(), 0))


def _opinion(real: Logits, fake: Logits) -> Opinion:
    right = 0.5 * ((real > 0).float() + (fake < 0).float())
    return Opinion(*(x.mean(dim=(1, 2, 3)) for x in (real, fake, right)))
