"""Means over pictures that neither batch size nor ranks change."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from ldm.metrics.exact import on_grid


class PictureMean(Metric):
    """The mean of a number that each picture has, such as its loss."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **arguments: Any) -> None:  # torchmetrics' own arguments
        super().__init__(**arguments)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, numbers: Float[Tensor, "b"]) -> None:
        """Takes in one number a picture; a batch may be empty."""
        self.total += on_grid(numbers).sum()
        self.count += len(numbers)

    def compute(self) -> Float[Tensor, ""]:
        """The mean, float64; NaN without pictures."""
        return self.total / self.count
