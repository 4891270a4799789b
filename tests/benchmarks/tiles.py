"""How far tiles are from the whole, and what they cost.

    OMP_NUM_THREADS=1 python tests/benchmarks/tiles.py RUN PICTURE

A picture through a first stage and back, whole and in tiles of several sizes and passes: PSNR
between the two pictures, and the time that the tiles take over that of the whole.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.commands.reconstruct import first_stage
from ldm.frozen import LatentCodec
from ldm.metrics.reconstruction import psnr


def timed(codec: LatentCodec, image: Tensor) -> tuple[Tensor, float]:
    began = time.perf_counter()
    return codec.decode(codec.encode(image)), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a first stage, as `ldm reconstruct` takes it")
    parser.add_argument("picture")
    options = parser.parse_args()
    codec, _ = first_stage(options.run)
    factor = codec.autoencoder.factor
    pixels = torch.from_numpy(np.array(Image.open(options.picture).convert("RGB"))).permute(
        2, 0, 1
    )[None]
    rows, columns = (side // factor * factor for side in pixels.shape[2:])
    image = pixels[:, :, :rows, :columns] / 127.5 - 1
    codec.decode(codec.encode(image))  # the first time is slower
    whole, seconds = timed(codec, image)
    print(f"{rows}x{columns}, whole: {float(psnr(whole, image)):.2f} dB to the picture")
    print("| tile | passes | to the whole, dB | largest difference of 255 | times the whole |")
    for cells in (16, 32, 48):
        for passes in (1, 2, 3, None):
            tiles = LatentCodec(codec.autoencoder, codec.statistics, tile=cells, tile_passes=passes)
            made, longer = timed(tiles, image)
            print(
                f"| {cells * factor} | {passes or 'all'} | {float(psnr(made, whole)):.1f} | "
                f"{float((made - whole).abs().max()) * 127.5:.1f} | {longer / seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
