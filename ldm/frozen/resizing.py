"""How the literature brings pictures to the size that a network takes. All give levels 0..255.

Pictures are first rounded to the 8 bits of a PNG, so that a picture in memory and the same picture
read from its file have the same features.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.metrics import to_bytes
from ldm.types import Image


def squash(images: Image, side: int, mode: str = "bicubic") -> Float[Tensor, "b 3 s s"]:
    """Both sides brought to `side` with antialiasing, rounded to 8 bits, as PIL does."""
    return _resampled(to_bytes(images).float(), (side, side), mode)


def shortest_and_crop(images: Image, side: int, mode: str = "bicubic") -> Float[Tensor, "b 3 s s"]:
    """The shorter side brought to `side` as PIL does, the middle square cut out: CLIP's way."""
    height, width = images.shape[2:]
    short = min(height, width)
    size = (height * side // short, width * side // short)
    pixels = _resampled(to_bytes(images).float(), size, mode)
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return pixels[:, :, top : top + side, left : left + side]


def tensorflow_bilinear(images: Image, side: int) -> Float[Tensor, "b 3 s s"]:
    """Bilinear without antialiasing, pixel i of the result at i * size / side: TensorFlow 1's way,
    in which every published FID was computed. Not rounded."""
    pixels = to_bytes(images).float()
    for axis in (2, 3):
        size = pixels.shape[axis]
        place = torch.arange(side, device=pixels.device) * torch.tensor(size / side)
        low = place.long()
        weight = (place - low)[:, None] if axis == 2 else place - low
        here = pixels.index_select(axis, low)
        after = pixels.index_select(axis, (low + 1).clamp(max=size - 1))
        pixels = here + (after - here) * weight
    return pixels


def _resampled(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Along the rows, then along the columns, rounded to 8 bits after each, as PIL does."""
    for step in ((pixels.shape[2], size[1]), size):
        if step != tuple(pixels.shape[2:]):
            pixels = interpolate(pixels, step, mode=mode, antialias=True, align_corners=False)
            pixels = (pixels + 0.5).floor().clamp(0, 255)
    return pixels
