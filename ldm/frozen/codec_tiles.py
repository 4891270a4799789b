"""Large pictures piece by piece: overlapping tiles through a network, blended back."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Map = Float[Tensor, "b c h w"]


def in_tiles(
    function: Callable[[Map], Map], x: Map, *, cell: int, out_cell: int, tile: int, overlap: int
) -> Float[Tensor, "b c2 h2 w2"]:
    """What `function` makes of x, from tiles of `tile` latent cells that share `overlap` cells.

    `cell` and `out_cell` are the rows of x and of the result that a latent cell has. The quarter of
    an overlap next to a tile's edge is thrown away and the middle half is blended linearly, so the
    result is that of the whole wherever a place depends on less than overlap / 4 cells around it.
    Group normalisation and attention see a tile where they would see the whole.
    """
    if not 0 < overlap < tile or overlap % 4:
        raise ValueError(
            f"tiles of {tile} cells cannot share {overlap}: set a multiple of 4 below the tile"
        )
    rows, columns = x.shape[2] // cell, x.shape[3] // cell
    result = weight = None
    for top in _starts(rows, tile, overlap):
        for left in _starts(columns, tile, overlap):
            bottom, right = min(top + tile, rows), min(left + tile, columns)
            made = function(x[:, :, top * cell : bottom * cell, left * cell : right * cell])
            down = _ramp(top, bottom, rows, overlap, out_cell).to(made)
            across = _ramp(left, right, columns, overlap, out_cell).to(made)
            share = down[:, None] * across
            if result is None or weight is None:
                shape = (*made.shape[:2], rows * out_cell, columns * out_cell)
                result, weight = made.new_zeros(shape), made.new_zeros(shape[2:])
            where = (
                ...,
                slice(top * out_cell, bottom * out_cell),
                slice(left * out_cell, right * out_cell),
            )
            result[where] += made * share
            weight[where] += share
    assert result is not None
    assert weight is not None
    return result / weight


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First cells of the tiles; the last tile ends at the edge."""
    if length <= tile:
        return [0]
    last = length - tile
    return [*range(0, last, tile - overlap), last]


def _ramp(first: int, last: int, length: int, overlap: int, out_cell: int) -> Float[Tensor, "n"]:
    """A tile's weight along one axis: 0 near an edge inside the picture, 1 from 3/4 overlap on."""
    place = (torch.arange((last - first) * out_cell) + 0.5) / out_cell
    from_start = (place - overlap / 4) / (overlap / 2)
    from_end = ((last - first) - place - overlap / 4) / (overlap / 2)
    ramp = torch.ones_like(place)
    if first > 0:
        ramp = torch.minimum(ramp, from_start)
    if last < length:
        ramp = torch.minimum(ramp, from_end)
    return ramp.clamp(0, 1)
