"""What all metrics of generated pictures share: checks of what comes in, and how ranks add up."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from ldm.types import Image


class SampleMetric(Metric):
    """A number that judges a set of pictures with their captions.

    `name` says what was computed, with which weights and which resize; `minimum` is the smallest
    set that it can judge. A subclass writes `add` and `compute`, and adds up in float64.
    """

    full_state_update = False
    higher_is_better: bool | None = None
    name: str
    minimum: int = 1
    count: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.size: tuple[int, ...] | None = None
        self._no_rows: dict[str, Tensor] = {}
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, images: Image, captions: list[str]) -> None:
        """Takes in one checked batch."""
        raise NotImplementedError

    def keep_rows(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Makes a state that keeps a row of this shape a picture: a list to append batches to."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._no_rows[name] = torch.zeros(0, *shape, dtype=dtype)

    def rows(self, name: str) -> Tensor:
        """`[n *shape]`: all rows kept so far; of all ranks inside `compute`."""
        return torch.cat([self._no_rows[name].to(self.device), *getattr(self, name)])

    def update(self, images: Tensor, captions: list[str]) -> None:
        """Takes in pictures `[b 3 H W]` in [-1, 1] and a caption for each.

        Raises ValueError where the two differ in number or a picture differs in kind or in size.
        """
        if len(images) != len(captions):
            raise ValueError(
                f"{self.name} was given {len(images)} pictures and {len(captions)} captions: "
                "give one caption a picture (an empty string where there is none)"
            )
        if not (images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3):
            raise ValueError(
                f"{self.name} needs float pictures [b 3 H W] in [-1, 1], got {images.dtype} "
                f"{list(images.shape)}: decode them with ldm.data.normalise"
            )
        size = tuple(images.shape[2:])
        if self.size not in (None, size):
            raise ValueError(
                f"{self.name} was given pictures of {size} after pictures of {self.size}: "
                "bring all pictures of a set to one size"
            )
        self.size = size
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            self.add(images, captions)
        self.count += len(images)

    def reset(self) -> None:
        """Forgets all pictures."""
        super().reset()
        self.size = None

    def judged(self) -> int:
        """The number of pictures; raises ValueError where they are fewer than the minimum."""
        count = int(self.count)
        if count < self.minimum:
            raise ValueError(
                f"{self.name} needs {self.minimum} pictures or more, got {count}: "
                "evaluate on more samples"
            )
        return count

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., Any] = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        # torchmetrics gathers every state from every rank and adds afterwards, which takes memory
        # in proportion to the ranks; sums are reduced here in one all-reduce instead.
        sums = [name for name in self._reductions if name not in self._no_rows]
        flat = torch.cat([getattr(self, name).reshape(-1) for name in sums])
        torch.distributed.all_reduce(flat, group=process_group or self.process_group)
        parts = torch.split(flat, [getattr(self, name).numel() for name in sums])
        for name, part in zip(sums, parts, strict=True):
            setattr(self, name, part.view_as(getattr(self, name)))
        for name in self._no_rows:
            gathered = gather_all_tensors(
                self.rows(name), group=process_group or self.process_group
            )
            setattr(self, name, gathered)
