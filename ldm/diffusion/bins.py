"""The loss by time, which says where along the path a network is weak."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ldm.types import Time


class TimeBins:
    """Sums and counts of the loss in even bins of t (`totals`, f64 `[2 bins]`), kept on the device:
    adding never makes the host wait, and is the same in any order of kernels."""

    def __init__(self, device: torch.device, bins: int = 8) -> None:
        self.totals = torch.zeros(2, bins, dtype=torch.float64, device=device)

    def add(self, t: Time, loss: Float[Tensor, "b"]) -> None:
        """Count each sample's loss, without its gradient, in the bin of its time."""
        bins = self.totals.shape[1]
        place = (t * bins).long().clamp(max=bins - 1)
        inside = place[:, None] == torch.arange(bins, device=t.device)
        values = torch.stack([loss.detach(), torch.ones_like(loss)]).double()
        # Chosen, not multiplied: a loss that is not finite stays in its own bin.
        self.totals += values[:, :, None].where(inside, 0).sum(1)

    def take(self) -> Float64[Tensor, "2 bins"]:
        """(sums, counts) since the last call; sum over ranks before dividing."""
        taken = self.totals.clone()
        self.totals.zero_()
        return taken
