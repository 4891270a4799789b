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

    def __init__(self, tiles: int, cells: int) -> None:
        super().__init__()
        self.tiles, self.cells = tiles, cells
        # Of each layer, one number or vector a tile, 0 until it has been run, or one a position.
        # Made at once: what is kept must not lie between the large tensors that come and go.
        self.newest: list[Sums] = []
        self.before: list[Sums] = []  # when the pass before was over
        self.passes = 0
        self._rewind()

    def enter_tile(self, shape: tuple[int, int], own: tuple[slice, slice]) -> None:
        """The next call of the network is on the next tile, of so many rows and columns of cells;
        `own` are those of them that no other tile counts."""
        self.tile += 1
        self.first = self.end  # its own cells are numbered behind those of the tiles before
        self.end += math.prod(side.stop - side.start for side in own)
        self.shape, self.own = shape, own
        self.layer = -1

    def still(self) -> bool:
        """A pass over all tiles has ended: whether another would give the same."""
        before, self.before = self.before, [_together(layer) for layer in self.newest]
        self.passes += 1
        self._rewind()
        if self.passes > len(self.newest):
            return True  # all of them are right, whatever rounding does to them
        return bool(before) and all(map(_alike, before, self.before))

    def _rewind(self) -> None:
        self.tile = -1
        self.end = 0

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

    def _layer(self, like: Sums, shapes: dict[str, tuple[int, ...]]) -> Sums:
        """What is kept of the layer at hand."""
        self.layer += 1
        if self.layer == len(self.newest):
            self.newest.append({name: x.new_zeros(shapes[name]) for name, x in like.items()})
        return self.newest[self.layer]

    def _add(self, sums: Sums) -> Sums:
        """Takes in a tile's sums; with them those of all tiles, which lack those that have not been
        run yet."""
        kept = self._layer(sums, {name: (self.tiles, *x.shape) for name, x in sums.items()})
        for name, x in sums.items():
            kept[name][self.tile] = x
        return _together(kept)

    def _own_positions(self, x: Tensor) -> Tensor:
        """Of `[... n d]`, tokens of a tile row by row, those that this tile counts."""
        rows, columns = self.shape
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
        own_rows, own_columns = self._places(x.shape[2] / self.shape[0])
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
        mine = {"key": self._own_positions(key), "value": self._own_positions(value)}
        cell = mine["key"].shape[-2] // (self.end - self.first)  # positions
        known = self._layer(
            mine,
            {name: (*x.shape[:-2], self.cells * cell, x.shape[-1]) for name, x in mine.items()},
        )
        for name, x in mine.items():
            known[name][..., self.first * cell : self.end * cell, :] = x
        run = (self.end if self.passes == 0 else self.cells) * cell
        return F.scaled_dot_product_attention(
            query, known["key"][..., :run, :], known["value"][..., :run, :], **options
        )

    def _linear_memory(self, key: Tensor, value: Tensor) -> Tensor:
        own = (self._own_positions(x.transpose(-1, -2)).transpose(-1, -2) for x in (key, value))
        return self._add({"memory": linear_memory(*own)})["memory"]


def _together(layer: Sums) -> Sums:
    """What all tiles add up to; what attention reads stays as it is."""
    if "key" in layer:
        return {name: x.clone() for name, x in layer.items()}
    return {name: x.sum(0) for name, x in layer.items()}


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
