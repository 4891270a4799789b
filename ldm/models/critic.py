"""A patch critic, and the losses that set it and the autoencoder against each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.models.layers import Picture

Logits = Float[Tensor, "b 1 h w"]  # high where the critic takes a patch for real


class PatchCritic(nn.Module):
    """Judges overlapping patches (Isola et al. 2017): `layers` convolutions of stride 2, then two.

    Group normalisation stands where the original has batch normalisation, so that a picture's
    verdict depends on no other picture: not on the batch, the ranks or the accumulation.
    """

    def __init__(
        self, *, width: int = 64, layers: int = 3, groups: int = 32, image_channels: int = 3
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(image_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        here = width
        for layer in range(1, layers + 1):
            there = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            stages += [
                nn.Conv2d(here, there, 4, stride, 1, bias=False),
                nn.GroupNorm(groups, there),
                nn.LeakyReLU(0.2),
            ]
            here = there
        self.body = nn.Sequential(*stages, nn.Conv2d(here, 1, 4, 1, 1))
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, image: Picture) -> Logits:
        """One logit a patch."""
        return self.body(image)


@runtime_checkable
class Adversary(Protocol):
    """A pair of losses, each a scalar, over logits."""

    def caught(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """What the critic minimises."""

    def fooled(self, fake: Logits) -> Float[Tensor, ""]:
        """What the autoencoder minimises."""


@dataclass(frozen=True)
class Hinge:
    """Lim and Ye 2017; the critic cares only for patches on the wrong side of a margin."""

    def caught(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """0 when all real logits are above 1 and all fake ones below -1."""
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def fooled(self, fake: Logits) -> Float[Tensor, ""]:
        """Minus the mean logit."""
        return -fake.mean()


@dataclass(frozen=True)
class Vanilla:
    """Cross-entropy for the critic, minus the mean logit for the autoencoder, as VQGAN has it."""

    def caught(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """Half the sum of both cross-entropies."""
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())

    def fooled(self, fake: Logits) -> Float[Tensor, ""]:
        """Minus the mean logit."""
        return -fake.mean()


@dataclass(frozen=True)
class NonSaturating:
    """Goodfellow et al. 2014, section 3: cross-entropy for both, with the labels exchanged."""

    def caught(self, real: Logits, fake: Logits) -> Float[Tensor, ""]:
        """Sum of both cross-entropies."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def fooled(self, fake: Logits) -> Float[Tensor, ""]:
        """Cross-entropy of the fakes labelled real."""
        return F.softplus(-fake).mean()


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Gradients pass through the network to its input, and none reach its weights."""
    learning = [p for p in network.parameters() if p.requires_grad]
    network.requires_grad_(False)
    try:
        yield network
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
