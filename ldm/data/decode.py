"""A picture's bytes to RGB pixels: upright, on a stated background, cut to size."""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageColor, ImageOps

Crop = Literal["centre", "random"]
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}


def colour_of(background: str) -> tuple[int, int, int]:
    """RGB of a colour name or #rrggbb. Raises ValueError for anything else."""
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise ValueError(f"background {background!r} is no colour; set white or #rrggbb") from None
    return red, green, blue


def open_picture(raw: bytes, *, max_pixels: int, at_least: int | None = None) -> Picture.Image:
    """The upright picture; a bomb is refused by its header, before anything is decoded.

    A JPEG that is at least twice as large as needed is decoded at a half, quarter or eighth,
    its short side no smaller than `at_least` pixels.
    """
    picture = Picture.open(io.BytesIO(raw))
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} has more than keep.max_pixels = {max_pixels} pixels")
    if at_least is not None and picture.format == "JPEG" and min(width, height) >= 2 * at_least:
        picture.draft(
            None, (at_least * width // min(picture.size), at_least * height // min(picture.size))
        )
    if "exif" in picture.info or picture.format == "TIFF":
        return ImageOps.exif_transpose(picture)
    return picture


def to_rgb(picture: Picture.Image, background: tuple[int, int, int]) -> Picture.Image:
    """RGB of a picture of any mode. Raises ValueError for numbers without a stated range."""
    if picture.mode == "RGB":
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
    picture: Picture.Image, shape: tuple[int, int], where: tuple[float, float]
) -> tuple[Picture.Image, tuple[int, int]]:
    """A window of `shape` (height, width) of the picture, scaled so that it just covers that.

    `where` in [0, 1)² places the window from top and left in what is left over (0.5 is the centre).
    Returns the window and its (top, left) in pixels of the scaled picture.
    """
    height, width = shape
    scale = max(width / picture.width, height / picture.height)
    scaled = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    left = int((scaled[0] - width) * where[1] + 0.5)
    top = int((scaled[1] - height) * where[0] + 0.5)
    if (picture.height, picture.width) == shape:
        return picture, (0, 0)
    across, down = picture.width / scaled[0], picture.height / scaled[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return picture.resize((width, height), Picture.Resampling.BICUBIC, box), (top, left)
