"""Distances between pictures as frozen networks see them. None of them is ever trained, and all of
them let gradients through to the reconstruction."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ldm.types import Image


@runtime_checkable
class PerceptualDistance(Protocol):
    """How different two pictures look, 0 where they are equal."""

    def __call__(self, a: Image, b: Image) -> Float[Tensor, "b"]:
        """Differentiable with respect to both."""

    def to(self, device: torch.device) -> object:
        """Move what is frozen inside."""


@runtime_checkable
class FeatureMaps(Protocol):
    """A frozen network as a list of feature maps, shallow to deep."""

    def __call__(self, images: Image) -> Sequence[Float[Tensor, "b c h w"]]:
        """Differentiable; pictures come in [-1, 1] and are prepared inside."""

    def to(self, device: torch.device) -> object:
        """Move the network."""


class FeatureDistance:
    """Squared difference of feature maps whose vectors are scaled to length 1, averaged over
    positions and layers: LPIPS without its learned channel weights (Zhang et al. 2018, eq. 1)."""

    def __init__(self, features: FeatureMaps) -> None:
        self.features = features

    def to(self, device: torch.device) -> "FeatureDistance":
        """Move the network; returns itself."""
        self.features.to(device)
        return self

    def __call__(self, a: Image, b: Image) -> Float[Tensor, "b"]:
        """In [0, 4]."""
        with torch.no_grad():
            wanted = self.features(b) if not b.requires_grad else None
        layers = zip(self.features(a), wanted or self.features(b), strict=True)
        distances = [unit_difference(x, y).sum(dim=1).mean(dim=(1, 2)) for x, y in layers]
        return torch.stack(distances).mean(dim=0)


def unit_difference(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Squared difference of the unit vectors at each position, float32."""
    return (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square()
