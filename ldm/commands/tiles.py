"""--tile of the commands that take pictures through a first stage."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.frozen import LatentCodec


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """--tile and --tile-passes."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="pictures that are larger go through the first stage in tiles of this side, which "
        "bounds the memory; several passes make the result that of the whole",
    )
    parser.add_argument(
        "--tile-passes",
        type=int,
        metavar="N",
        help="at most so many passes over all tiles: faster, and the fewer the farther from the "
        "whole (default: until they agree with it)",
    )


def tiled(codec: "LatentCodec", arguments: argparse.Namespace) -> "LatentCodec":
    """The same codec, in tiles where --tile asks for it."""
    from ldm.frozen import LatentCodec
    from ldm.frozen.codec import LEAST_TILE

    pixels, passes, factor = arguments.tile, arguments.tile_passes, codec.autoencoder.factor
    if pixels is None:
        if passes is not None:
            raise ValueError(f"--tile-passes {passes}: there are no tiles; add --tile PIXELS")
        return codec
    if pixels % factor or pixels < LEAST_TILE * factor:
        raise ValueError(
            f"--tile {pixels}: a tile is a multiple of the first stage's factor {factor} and at "
            f"least {LEAST_TILE * factor}; give e.g. "
            f"{max(LEAST_TILE, round(pixels / factor)) * factor}"
        )
    if passes is not None and passes < 1:
        raise ValueError(f"--tile-passes {passes}: give 1 or more")
    return LatentCodec(
        codec.autoencoder, codec.statistics, tile=pixels // factor, tile_passes=passes
    )
