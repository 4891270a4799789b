"""A picture's bytes to RGB pixels: upright, on a stated background, cut to size."""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageColor, ImageOps, UnidentifiedImageError
from torch.nn.functional import interpolate

Crop = Literal["centre", "random"]
Pixels = NDArray[np.uint8]  # H W 3
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Window:
    """A part of a scaled picture: (height, width) of the picture as it was stored, and (top, left)
    of the part in pixels of the scaled picture: SDXL's size and crop conditioning
    (arXiv:2307.01952, section 2.2)."""

    original: tuple[int, int]
    corner: tuple[int, int]


@dataclass(frozen=True)
class Decoder:
    """What is behind transparent pictures, and how many pixels are too many."""

    background: tuple[int, int, int]
    max_pixels: int

    def __call__(
        self, raw: bytes, shape: tuple[int, int], where: tuple[float, float]
    ) -> tuple[Pixels, Window]:
        """Scales the picture so that it just covers `shape` (height, width) and cuts that out.

        `where` in [0, 1)² says how much of what is left over lies above and left: 0.5 is the
        centre. The pixels are writable. Raises whatever a codec does for a broken picture.
        """
        picture = open_header(raw, self.max_pixels)
        turned = orientation(picture)
        if picture.format == "JPEG" and picture.mode == "RGB" and turned == 1:
            return self.jpeg(raw, (picture.height, picture.width), shape, where)
        original = (picture.height, picture.width) if turned < 5 else picture.size
        pixels = np.array(to_rgb(upright(picture), self.background))
        part, corner = cut_out(pixels, shape, where)
        return part, Window(original, corner)

    def jpeg(
        self,
        raw: bytes,
        stored: tuple[int, int],
        shape: tuple[int, int],
        where: tuple[float, float],
    ) -> tuple[Pixels, Window]:
        """The same for an upright RGB JPEG, whose `stored` (height, width) is known."""
        part, corner = cut_out(_jpeg(raw, stored, shape), shape, where)
        return part, Window(stored, corner)


def _jpeg(raw: bytes, stored: tuple[int, int], shape: tuple[int, int]) -> Pixels:
    """What Pillow would decode, bit for bit, in 0.4 of its time; one that is at least twice as
    large as `shape` needs is scaled while it is decoded, by which most of the work is skipped."""
    scale = max(shape[0] / stored[0], shape[1] / stored[1])
    factor = next(f for f in (8, 4, 2, 1) if f * scale <= 1 or f == 1)  # libjpeg-turbo's fast ones
    return simplejpeg.decode_jpeg(
        raw,
        "RGB",
        min_height=math.ceil(stored[0] / factor),
        min_width=math.ceil(stored[1] / factor),
        min_factor=factor,
    )


def colour_of(background: str) -> tuple[int, int, int]:
    """RGB of a colour name or #rrggbb. Raises ValueError for anything else."""
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise ValueError(f"background {background!r} is no colour; set white or #rrggbb") from None
    return red, green, blue


def open_header(raw: bytes, max_pixels: int) -> Picture.Image:
    """The picture, not decoded yet; what is none, or a bomb, is refused by its header."""
    try:
        picture = Picture.open(io.BytesIO(raw))
    except UnidentifiedImageError:  # its words are of a buffer in memory
        raise ValueError(no_picture(raw)) from None
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} has more pixels than max_pixels = {max_pixels}")
    return picture


def no_picture(raw: bytes) -> str:
    """What is said of bytes that no codec knows."""
    return f"no known kind of picture (starts with {raw[:12]!r})" if raw else "0 bytes"


def orientation(picture: Picture.Image) -> int:
    """The EXIF orientation, 1 where nothing is to be turned."""
    if "exif" not in picture.info and picture.format != "TIFF":
        return 1
    return int(picture.getexif().get(_ORIENTATION, 1))


def upright(picture: Picture.Image) -> Picture.Image:
    """Turned as its EXIF record says."""
    return ImageOps.exif_transpose(picture) if orientation(picture) != 1 else picture


def to_rgb(picture: Picture.Image, background: tuple[int, int, int]) -> Picture.Image:
    """RGB of a picture of any mode; of an animation, its first frame.

    Raises ValueError for numbers without a stated range.
    """
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode in _SIXTEEN_BITS:
        values = np.asarray(picture).astype(np.float32) / 257
        return Picture.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        return Picture.fromarray(_bytes_of_floats(np.asarray(picture))).convert("RGB")
    if picture.mode == "I":
        raise ValueError("32-bit whole numbers have no stated range; convert them to 8 or 16 bits")
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        behind = Picture.new("RGBA", picture.size, (*background, 255))
        return Picture.alpha_composite(behind, picture).convert("RGB")
    return picture.convert("RGB")


def _bytes_of_floats(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"floating-point pixels from {low:g} to {high:g}; they must be in [0, 1]")
    return np.rint(values * 255).astype(np.uint8)


def cut_out(
    pixels: Pixels, shape: tuple[int, int], where: tuple[float, float]
) -> tuple[Pixels, tuple[int, int]]:
    """The part that `Decoder` describes, and its (top, left) in the scaled picture.

    Antialiased bicubic by torch, within two levels of Pillow's and several times as fast.
    """
    height, width = pixels.shape[:2]
    if (height, width) == shape:
        return pixels, (0, 0)
    scale = max(shape[0] / height, shape[1] / width)
    rows = min(height, max(1, round(shape[0] / scale)))
    columns = min(width, max(1, round(shape[1] / scale)))
    top, left = round((height - rows) * where[0]), round((width - columns) * where[1])
    part = pixels[top : top + rows, left : left + columns]
    corner = (round(top * scale), round(left * scale))
    if part.shape[:2] == shape:
        return np.ascontiguousarray(part), corner
    image = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
    scaled = interpolate(image, shape, mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy(), corner
