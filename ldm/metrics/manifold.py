"""Fidelity and variety apart: which pictures fall among the others of their kind.

A set's manifold is the union of balls around its pictures, each as large as the distance to the
k-th nearest other picture of the set, in feature space.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.metrics.exact import fixed_order
from ldm.metrics.features import Features
from ldm.metrics.reference import Reference
from ldm.metrics.sample_metric import SampleMetric
from ldm.types import Image


class _Manifolds(SampleMetric):
    """Keeps features; a subclass compares the two manifolds in `compute`."""

    higher_is_better = True
    features_of_pictures: list[Tensor]

    def __init__(self, what: str, features: Features, reference: Reference, k: int) -> None:
        if k < 1:
            raise ValueError(f"{what} with k={k} neighbours has no balls: set k to 1 or more")
        super().__init__(f"{what}@{k}/{features.name}")
        self.features = features
        self.k = k
        self.minimum = k + 1
        self.reference = reference.samples_for(features, k + 1)
        self.keep_rows("features_of_pictures", features.width)

    def add(self, images: Image, captions: list[str]) -> None:
        """Keeps the pictures' features."""
        self.features_of_pictures.append(self.features(images))

    def both(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """Features of generated and of real pictures, float64."""
        self.judged()
        made = self.rows("features_of_pictures")
        return made[fixed_order(made)].double(), self.reference.to(made).double()


class Precision(_Manifolds):
    """Share of generated pictures within the real manifold (Kynkäänniemi et al. 2019, eq. 2)."""

    def __init__(self, features: Features, reference: Reference, k: int = 3) -> None:
        super().__init__("precision", features, reference, k)

    def compute(self) -> Float[Tensor, ""]:
        """In [0, 1], float64."""
        made, real = self.both()
        return (_balls_around(made, real, self.k) > 0).double().mean()


class Recall(_Manifolds):
    """Share of real pictures within the generated manifold (Kynkäänniemi et al. 2019, eq. 2)."""

    def __init__(self, features: Features, reference: Reference, k: int = 3) -> None:
        super().__init__("recall", features, reference, k)

    def compute(self) -> Float[Tensor, ""]:
        """In [0, 1], float64."""
        made, real = self.both()
        return (_balls_around(real, made, self.k) > 0).double().mean()


class Density(_Manifolds):
    """Real balls around a generated picture, over k (Naeem et al. 2020, eq. 3); may exceed 1."""

    def __init__(self, features: Features, reference: Reference, k: int = 5) -> None:
        super().__init__("density", features, reference, k)

    def compute(self) -> Float[Tensor, ""]:
        """0 or more, float64."""
        made, real = self.both()
        return _balls_around(made, real, self.k).double().mean() / self.k


class Coverage(_Manifolds):
    """Share of real pictures whose ball holds a generated one (Naeem et al. 2020, eq. 4)."""

    def __init__(self, features: Features, reference: Reference, k: int = 5) -> None:
        super().__init__("coverage", features, reference, k)

    def compute(self) -> Float[Tensor, ""]:
        """In [0, 1], float64."""
        made, real = self.both()
        parts = torch.split(real, 1024)
        nearest = torch.cat([_distances(part, made).amin(1) for part in parts])
        return (nearest <= _radii(real, self.k)).double().mean()


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    # By a matrix product whatever the number of rows, so that blocks do not matter.
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def _radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n"]:
    """Distance from each row to its k-th nearest other row; the nearest of all is itself."""
    parts = torch.split(x, 1024)
    return torch.cat([_distances(part, x).kthvalue(k + 1, dim=1).values for part in parts])


def _balls_around(
    x: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], k: int
) -> Int64[Tensor, "n"]:
    """How many of the balls around `centres` hold each row of x."""
    radii = _radii(centres, k)
    parts = torch.split(x, 1024)
    return torch.cat([(_distances(part, centres) <= radii).sum(1) for part in parts])
