"""What a tile has to know of the picture it is a part of: statistics of norms, and what attention
reads.

The convolutions of an autoencoder look at a few cells around a place, group normalisation and
attention at the whole picture. Here a network runs on tiles again and again. Those layers add up
over the tiles what they would have added up over the whole, each tile as it was when it was last
run. Pass k + 1 so has the first k layers right whatever it started from, and most networks are
there long before: the passes end when no sum moves any more.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm.models.dc_ae import linear_memory
from ldm.models.layers import at_least_float32

STILL = 1e-3  # of its size: a change of the sums that moves a picture by less than its 8 bits show

Sums = dict[str, Tensor]


class WholePicture(TorchFunctionMode):
    """Group norms, softmax and linear attention that run inside see the picture, not the tile.

    A tile's own cells must be all of the picture's, each once, when a pass is over. The layers are
    told apart by the order of their calls, which is the same for every tile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[list[Sums]] = []  # the newest of each layer and tile
        self.before: list[Sums] = []  # together, when the pass before was over
        self.passes = 0
        self.tile = -1

    def enter_tile(self, cells: tuple[int, int], own: tuple[slice, slice]) -> None:
        """The next call of the network is on the next tile, of `cells` rows and columns; `own` are
        those of them that no other tile counts."""
        self.cells, self.own = cells, own
        self.tile += 1
        self.layer = -1

    def still(self) -> bool:
        """A pass over all tiles has ended: whether another would give the same."""
        before, self.before = self.before, [_together(parts) for parts in self.parts]
        self.passes += 1
        self.tile = -1
        if self.passes > len(self.parts):
            return True  # all of them are right, whatever rounding does to them
        return bool(before) and all(map(_alike, before, self.before))

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called in place of every function of torch."""
        options = kwargs or {}
        if function is F.group_norm:
            return self._group_norm(*args, **options)
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **options)
        if function is linear_memory:
            return self._linear_memory(*args, **options)
        return function(*args, **options)

    def _add(self, sums: Sums) -> Sums:
        """Takes in a tile's sums for the layer at hand; with them those of all tiles so far, of
        this pass or, behind this tile, of the one before."""
        self.layer += 1
        if self.layer == len(self.parts):
            self.parts.append([])
        parts = self.parts[self.layer]
        parts[self.tile : self.tile + 1] = [sums]
        return _together(parts)

    def _own_positions(self, x: Tensor) -> Tensor:
        """Of `[... n d]`, tokens of a tile row by row, those that this tile counts."""
        rows, columns = self.cells
        scale = math.sqrt(x.shape[-2] / (rows * columns))
        grid = x.reshape(*x.shape[:-2], round(rows * scale), round(columns * scale), x.shape[-1])
        own_rows, own_columns = self._places(scale)
        return grid[..., own_rows, own_columns, :].flatten(-3, -2)

    def _places(self, scale: float) -> tuple[slice, slice]:
        rows, columns = (slice(round(s.start * scale), round(s.stop * scale)) for s in self.own)
        return rows, columns

    def _group_norm(
        self,
        x: Tensor,
        groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        own_rows, own_columns = self._places(x.shape[2] / self.cells[0])
        own = x[:, :, own_rows, own_columns]
        variance, mean = torch.var_mean(
            at_least_float32(own).reshape(len(x), groups, -1), dim=-1, correction=0
        )
        count, mean, variance = own[0].numel() / groups, mean.double(), variance.double()
        known = self._add(
            {
                "count": torch.full_like(mean, count),
                "total": mean * count,
                "squares": (variance + mean.square()) * count,
            }
        )
        mean, variance = (
            number.to(at_least_float32(x)).repeat_interleave(x.shape[1] // groups, 1).flatten()
            for number in _moments(known)
        )
        gain, shift = (None if given is None else given.repeat(len(x)) for given in (weight, bias))
        # Normalised with numbers that are given, a picture of b samples and c channels is one
        # sample of b * c to torch.
        joined = x.reshape(1, -1, *x.shape[2:])
        return F.batch_norm(joined, mean, variance, gain, shift, eps=eps).view_as(x)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        known = self._add({"key": self._own_positions(key), "value": self._own_positions(value)})
        return F.scaled_dot_product_attention(query, known["key"], known["value"], **options)

    def _linear_memory(self, key: Tensor, value: Tensor) -> Tensor:
        own = (self._own_positions(x.transpose(-1, -2)).transpose(-1, -2) for x in (key, value))
        return self._add({"memory": linear_memory(*own)})["memory"]


def _together(parts: list[Sums]) -> Sums:
    """What all tiles add up to; what attention reads is put together instead."""
    if "key" in parts[0]:
        return {name: torch.cat([part[name] for part in parts], -2) for name in parts[0]}
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def _alike(before: Sums, now: Sums) -> bool:
    """Whether sums moved by less than STILL of what they say: a deviation, the size of a vector."""
    if "squares" in now:
        (mean, variance), (other_mean, other_variance) = _moments(now), _moments(before)
        deviation = variance.sqrt()
        moved = torch.maximum((mean - other_mean).abs(), (deviation - other_variance.sqrt()).abs())
        return bool((moved <= STILL * deviation).all())
    return all(bool((now[n] - before[n]).norm() <= STILL * now[n].norm()) for n in now)


def _moments(sums: Sums) -> tuple[Tensor, Tensor]:
    mean = sums["total"] / sums["count"]
    return mean, (sums["squares"] / sums["count"] - mean.square()).clamp(min=0)
