"""Distances by kernels: the mean discrepancy of two sets under a similarity of single pictures.

MMD^2(X, Y) = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)   (Gretton et al. 2012, eq. 2 and 3);
unbiased where a picture is not compared with itself, so that small sets can be judged.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ldm.metrics.exact import fixed_order
from ldm.metrics.features import Features
from ldm.metrics.reference import Reference
from ldm.metrics.sample_metric import SampleMetric
from ldm.types import Image

Kernel = Callable[[Float[Tensor, "n d"], Float[Tensor, "m d"]], Float[Tensor, "n m"]]


class KernelDistance(SampleMetric):
    """KID (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / d + 1)^3.

    Over all pairs at once, of which the literature's mean over random subsets is an estimate. Not
    biased by the number of pictures; may be slightly negative for equal sets.
    """

    higher_is_better = False
    minimum = 2
    features_of_pictures: list[Tensor]

    def __init__(self, features: Features, reference: Reference) -> None:
        super().__init__(f"kid/{features.name}")
        self.features = features
        self.reference = reference.samples_for(features, self.minimum)
        self.keep_rows("features_of_pictures", features.width)

    def add(self, images: Image, captions: list[str]) -> None:
        """Keeps the pictures' features."""
        self.features_of_pictures.append(self.features(images))

    def compute(self) -> Float[Tensor, ""]:
        """The distance, float64."""
        self.judged()
        x = self.rows("features_of_pictures")
        x = x[fixed_order(x)].double()
        return mean_discrepancy(x, self.reference.to(x), cubic_kernel, biased=False)


class ClipDiscrepancy(SampleMetric):
    """CMMD (Jayasumana et al. 2024): biased MMD^2 of CLIP embeddings of length one with a Gaussian
    kernel of width 10, times 1000. The paper's numbers are those of CLIP ViT-L/14 at 336 pixels."""

    higher_is_better = False
    minimum = 2
    features_of_pictures: list[Tensor]

    def __init__(self, features: Features, reference: Reference) -> None:
        super().__init__(f"cmmd/{features.name}")
        self.features = features
        self.reference = normalize(reference.samples_for(features, self.minimum).double(), dim=1)
        self.keep_rows("features_of_pictures", features.width)

    def add(self, images: Image, captions: list[str]) -> None:
        """Keeps the pictures' features."""
        self.features_of_pictures.append(self.features(images))

    def compute(self) -> Float[Tensor, ""]:
        """The distance, float64."""
        self.judged()
        x = self.rows("features_of_pictures")
        x = normalize(x[fixed_order(x)].double(), dim=1)
        return 1000 * mean_discrepancy(x, self.reference.to(x), gaussian_kernel, biased=True)


def cubic_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x.y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """exp(-|x - y|^2 / (2 10^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squares / 200).exp()


def mean_discrepancy(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], kernel: Kernel, biased: bool
) -> Float[Tensor, ""]:
    """MMD^2 in blocks of rows, so that memory grows with the pictures and not with their square."""
    within = _mean_within(x, kernel, biased) + _mean_within(y, kernel, biased)
    return within - 2 * _sum(x, y, kernel) / (len(x) * len(y))


def _mean_within(x: Tensor, kernel: Kernel, biased: bool) -> Tensor:
    if biased:
        return _sum(x, x, kernel) / len(x) ** 2
    diagonal = torch.stack([kernel(row, row).sum() for row in torch.split(x, 1)]).sum()
    return (_sum(x, x, kernel) - diagonal) / (len(x) * (len(x) - 1))


def _sum(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    return torch.stack([kernel(rows, y).sum() for rows in torch.split(x, 1024)]).sum()
