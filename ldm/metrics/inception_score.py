"""How sure a classifier is of each picture, and how different its answers are."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.metrics.exact import on_grid
from ldm.metrics.features import Features
from ldm.metrics.sample_metric import SampleMetric
from ldm.types import Image


class InceptionScore(SampleMetric):
    """exp of the mean KL divergence from each picture's classes to their mean over the set
    (Salimans et al. 2016), between 1 and the number of classes; more is better.

    `features` are logits. Over the whole set at once: the literature's mean over ten parts depends
    on how pictures fall into parts.
    """

    higher_is_better = True
    minimum = 2
    total: Tensor
    negative_entropy: Tensor

    def __init__(self, features: Features) -> None:
        super().__init__(f"inception_score/{features.name}")
        self.features = features
        zeros = torch.zeros(features.width, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("negative_entropy", torch.zeros_like(zeros[0]), dist_reduce_fx="sum")

    def add(self, images: Image, captions: list[str]) -> None:
        """Adds the pictures' probabilities and entropies."""
        logits = self.features(images).double()
        probabilities = logits.softmax(1)
        self.total += on_grid(probabilities).sum(0)
        entropy = -(probabilities * logits.log_softmax(1)).sum(1)
        self.negative_entropy -= on_grid(entropy).sum()

    def compute(self) -> Float[Tensor, ""]:
        """The score, float64."""
        count = self.judged()
        mean = self.total / count
        return (self.negative_entropy / count - torch.xlogy(mean, mean).sum()).exp()
