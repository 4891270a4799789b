"""Frechet distance between two sets of pictures (FID where the features are Inception's).

For the trace of (A B)^(1/2) write A = P^T P and B = Q^T Q. Then A B = P^T (P Q^T) Q has the
eigenvalues of (P Q^T) (P Q^T)^T, so the trace is the sum of the singular values of P Q^T. No root
of a product is taken: a covariance of fewer pictures than features, whose roots by iteration fail
or come out complex, is as good as any.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.metrics.exact import halves, moments
from ldm.metrics.features import Features
from ldm.metrics.reference import Reference
from ldm.metrics.sample_metric import SampleMetric
from ldm.types import Image


class FrechetDistance(SampleMetric):
    """Distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    0 is best. It is biased upwards for few pictures: compare only values of equal numbers.
    """

    higher_is_better = False
    minimum = 2
    total: Tensor
    outer: Tensor

    def __init__(self, features: Features, reference: Reference) -> None:
        super().__init__(f"frechet_distance/{features.name}")
        self.features = features
        self.reference = reference.moments_for(features)
        width = 2 * features.width
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(
            "outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum"
        )

    def add(self, images: Image, captions: list[str]) -> None:
        """Adds the pictures to the sums."""
        numbers = halves(self.features(images))
        self.total += numbers.sum(0)
        self.outer += numbers.T @ numbers

    def compute(self) -> Float[Tensor, ""]:
        """The distance, float64."""
        mean, covariance = moments(self.judged(), self.total, self.outer)
        return frechet_distance(mean, covariance, *(x.to(mean) for x in self.reference))


def frechet_distance(
    mean_a: Float[Tensor, "d"],
    covariance_a: Float[Tensor, "d d"],
    mean_b: Float[Tensor, "d"],
    covariance_b: Float[Tensor, "d d"],
) -> Float[Tensor, ""]:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), float64 (Dowson and Landau 1982)."""
    means = (mean_a.double() - mean_b.double()).square().sum()
    traces = covariance_a.double().trace() + covariance_b.double().trace()
    cross = torch.linalg.svdvals(_factor(covariance_a) @ _factor(covariance_b).T).sum()
    return means + traces - 2 * cross


def _factor(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "r d"]:
    """P with P^T P = covariance; as many rows as the covariance has rank in float64."""
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = values > values[-1].clamp(min=0) * torch.finfo(torch.float64).eps
    return values[kept].sqrt()[:, None] * vectors[:, kept].T
