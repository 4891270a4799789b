"""Whether the model copies: from its training pictures, or from itself."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ldm.metrics.clip_score import caption_label
from ldm.metrics.exact import fixed_order
from ldm.metrics.features import Features
from ldm.metrics.reference import Reference
from ldm.metrics.sample_metric import SampleMetric
from ldm.types import Image


class Memorisation(SampleMetric):
    """Share of pictures that are near copies of one training picture, in [0, 1]; 0 is best.

    A copy is much nearer to its nearest training picture than to the second nearest: less than
    `ratio` times as far (Yoon et al. 2023, with 1/3). The reference must keep every training
    picture; equal ones among them count once, else a copy of both would be none.
    """

    higher_is_better = False
    copies: Tensor

    def __init__(self, features: Features, reference: Reference, ratio: float = 1 / 3) -> None:
        super().__init__(f"memorisation<{ratio:.3g}/{features.name}")
        if not 0 < ratio < 1:
            raise ValueError(f"ratio={ratio} finds all pictures or none: set it between 0 and 1")
        self.features = features
        self.ratio = ratio
        training = reference.samples_for(features, reference.count)
        self.known = torch.unique(training, dim=0).double()
        if len(self.known) < 2:
            raise ValueError(
                "all training pictures of the reference are equal: memorisation compares the two "
                "nearest, so make it from two different pictures or more"
            )
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("copies", zero, dist_reduce_fx="sum")

    def add(self, images: Image, captions: list[str]) -> None:
        """Counts the copies."""
        features = self.features(images).double()
        self.known = self.known.to(features.device)
        nearest, second = nearest_distances(features, self.known, 2).unbind(1)
        self.copies += (nearest < self.ratio * second).sum()

    def compute(self) -> Float[Tensor, ""]:
        """The share, float64."""
        return self.copies / self.judged()


class Diversity(SampleMetric):
    """Mean distance 1 - cos between two pictures of one caption, in [0, 2]: the mean over captions
    of the mean over pairs. Captions with one picture do not count."""

    higher_is_better = True
    minimum = 2
    features_of_pictures: list[Tensor]
    labels: list[Tensor]

    def __init__(self, features: Features) -> None:
        super().__init__(f"diversity/{features.name}")
        self.features = features
        self.keep_rows("features_of_pictures", features.width)
        self.keep_rows("labels", dtype=torch.int64)

    def add(self, images: Image, captions: list[str]) -> None:
        """Keeps the pictures' features, and which caption each has."""
        self.features_of_pictures.append(self.features(images))
        self.labels.append(torch.tensor([caption_label(c) for c in captions], device=self.device))

    def compute(self) -> Float[Tensor, ""]:
        """The mean distance, float64."""
        self.judged()
        features = self.rows("features_of_pictures")
        order = fixed_order(features)
        unit = normalize(features[order].double(), dim=1)
        labels = self.rows("labels")[order]
        different, group, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
        if int(sizes.max()) < 2:
            raise ValueError(
                f"{self.name} compares pictures of one caption, and each of the {len(sizes)} "
                "captions has one picture: draw several pictures a prompt"
            )
        # The sum of all cosines within a group is the squared length of the group's sum.
        sums = unit.new_zeros(len(different), unit.shape[1]).index_add_(0, group, unit)
        squares = unit.new_zeros(len(different)).index_add_(0, group, unit.square().sum(1))
        pairs = sizes * (sizes - 1)
        cosines = (sums.square().sum(1) - squares)[pairs > 0] / pairs[pairs > 0]
        return 1 - cosines.mean()


def nearest_distances(
    x: Float[Tensor, "n d"], others: Float[Tensor, "m d"], k: int
) -> Float[Tensor, "n k"]:
    """Euclidean distances to the k nearest of `others`, the nearest first."""
    return (
        torch.cdist(x, others, compute_mode="use_mm_for_euclid_dist")
        .topk(k, dim=1, largest=False)
        .values
    )
