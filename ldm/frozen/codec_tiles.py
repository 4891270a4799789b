"""Large pictures piece by piece: overlapping tiles through a network, blended back."""

import itertools
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.frozen.codec_whole import WholePicture

Map = Float[Tensor, "b c h w"]


def in_tiles(
    function: Callable[[Map], Map],
    x: Map,
    *,
    cell: int,
    out_cell: int,
    tile: int,
    overlap: int,
    passes: int | None = None,
) -> Float[Tensor, "b c2 h2 w2"]:
    """What `function` makes of x, from tiles of `tile` latent cells that share `overlap` cells.

    `cell` and `out_cell` are the rows of x and of the result that a latent cell has. 3/8 of an
    overlap next to a tile's edge are thrown away and the quarter between is blended linearly, so
    the result is that of the whole wherever a place depends on less than 3/8 overlap around it and,
    by norms and attention, on the whole as WholePicture tells it to the tiles. That takes as many
    passes over all tiles as it takes, or `passes`; in one a tile knows only those before it.
    """
    if not 0 < overlap < tile or overlap % 8:
        raise ValueError(
            f"tiles of {tile} cells cannot share {overlap}: set a multiple of 8 below the tile"
        )
    rows, columns = x.shape[2] // cell, x.shape[3] // cell
    tiles = list(itertools.product(_spans(rows, tile, overlap), _spans(columns, tile, overlap)))
    whole = WholePicture(len(tiles), rows * columns)
    for number in itertools.count(1):
        result = _pass(function, x, cell, out_cell, overlap, tiles, whole)
        if whole.still() or number == passes:
            break
    return result


def _pass(
    function: Callable[[Map], Map],
    x: Map,
    cell: int,
    out_cell: int,
    overlap: int,
    tiles: list[tuple["_Span", "_Span"]],
    whole: WholePicture,
) -> Float[Tensor, "b c2 h2 w2"]:
    sides = [x.shape[2] // cell, x.shape[3] // cell]
    result: Tensor | None = None
    weight = torch.zeros([side * out_cell for side in sides], device=x.device)
    for places in tiles:
        whole.enter_tile((places[0].length, places[1].length), (places[0].own, places[1].own))
        with whole:
            made = function(x[:, :, *(place.of(cell) for place in places)])
        if result is None:
            result = made.new_zeros(*made.shape[:2], *weight.shape)
        down, across = (
            _ramp(place, side, overlap, out_cell).to(made)
            for place, side in zip(places, sides, strict=True)
        )
        where = [place.of(out_cell) for place in places]
        result[:, :, *where] += made * (share := down[:, None] * across)
        weight[*where] += share
    assert result is not None
    return result / weight


class _Span(NamedTuple):
    """A tile along one axis, in latent cells of the picture; `own` are those, counted from
    `first`, that no other tile calls its own."""

    first: int
    last: int
    own: slice

    @property
    def length(self) -> int:
        """Latent cells."""
        return self.last - self.first

    def of(self, cell: int) -> slice:
        """The tile's rows in a map that has `cell` of them a latent cell."""
        return slice(self.first * cell, self.last * cell)


def _spans(length: int, tile: int, overlap: int) -> list[_Span]:
    """Tiles, the last of which ends at the edge; neighbours part in the middle of what they
    share."""
    if length <= tile:
        return [_Span(0, length, slice(0, length))]
    firsts = [*range(0, length - tile, tile - overlap), length - tile]
    cuts = [0, *((here + tile + there) // 2 for here, there in pairwise(firsts)), length]
    return [
        _Span(first, first + tile, slice(begin - first, end - first))
        for first, (begin, end) in zip(firsts, pairwise(cuts), strict=True)
    ]


def _ramp(span: _Span, length: int, overlap: int, out_cell: int) -> Float[Tensor, "n"]:
    """A tile's weight along one axis: 0 near an edge inside the picture, 1 from 5/8 overlap on."""
    place = (torch.arange(span.length * out_cell) + 0.5) / out_cell
    ramp = torch.ones_like(place)
    for inside, distance in (
        (span.first > 0, place),
        (span.last < length, span.length - place),
    ):
        if inside:
            ramp = torch.minimum(ramp, (distance - overlap * 3 / 8) / (overlap / 4))
    return ramp.clamp(0, 1)
