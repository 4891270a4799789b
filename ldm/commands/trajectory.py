"""A denoising as pictures: a strip of its stops, and an animation of all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.diffusion import Estimate
from ldm.frozen import LatentCodec
from ldm.generate import save_png, to_picture
from ldm.types import Latent, Time

SHOWN = 8  # stops in a strip
SIDE = 96  # pictures that are smaller are enlarged, pixel by pixel
HEAD = 14  # pixels of a strip's words
SECONDS, REST = 3.0, 1.5  # of an animation, and how long its end is shown


class Stop(NamedTuple):
    """One stop of a sampler: the noisy latent and the data behind it, as pictures `[3 H W]`."""

    t: float
    noisy: Tensor
    estimate: Tensor


class Trajectory:
    """Remembers what a denoiser is asked and what it answers: a watcher of `Watched`.

    Where a sampler asks twice for a time or goes back to more noise, the later answer counts.
    """

    def __init__(self) -> None:
        self._stops: list[tuple[float, Latent, Latent]] = []

    def __call__(self, x_t: Latent, t: Time, estimate: Estimate) -> None:
        """All rows of a batch stand at the same time."""
        now = float(t[0])
        while self._stops and self._stops[-1][0] <= now:
            self._stops.pop()
        self._stops.append((now, x_t, estimate.x0))

    def of(self, row: int, codec: LatentCodec) -> list[Stop]:
        """The stops of one sample, decoded."""
        noisy = codec.decode(torch.stack([x_t[row] for _, x_t, _ in self._stops]).float())
        data = codec.decode(torch.stack([x0[row] for _, _, x0 in self._stops]).float())
        return [
            Stop(t, *pictures)
            for (t, _, _), pictures in zip(self._stops, zip(noisy, data, strict=True), strict=True)
        ]


def save_trajectory(
    stops: Sequence[Stop], result: Tensor, path: Path, texts: Mapping[str, Any]
) -> None:
    """`path`.png, noisy latents above estimates, and `path`.gif, beside each other; both end with
    the result, `[3 H W]`."""
    count = min(SHOWN, len(stops))
    chosen = [stops[round(i * (len(stops) - 1) / max(count - 1, 1))] for i in range(count)]
    columns = [(f"t = {s.t:.3f}", [s.noisy, s.estimate]) for s in chosen]
    picture = strip([*columns, ("result", [result, result])])
    save_png(picture, path.with_name(path.name + ".png"), {**texts, "times": [s.t for s in chosen]})
    pairs = [(s.noisy, s.estimate) for s in stops] + [(result, result)]
    frames = [strip([("x_t", [a]), ("estimate", [b])]) for a, b in pairs]
    pause = max(40, round(1000 * SECONDS / len(frames)))
    durations = [pause] * (len(frames) - 1) + [round(1000 * REST)]
    frames[0].save(
        path.with_name(path.name + ".gif"),
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
    )


def strip(columns: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """Columns of pictures `[3 H W]` of one size, each under its words (lines)."""
    font = ImageFont.load_default(11)
    pictures = [[enlarged(to_picture(image)) for image in images] for _, images in columns]
    width, height = pictures[0][0].size
    head = HEAD * max(words.count("\n") + 1 for words, _ in columns) + 2
    rows = max(map(len, pictures))
    size = (len(columns) * (width + 2) - 2, head + rows * (height + 2) - 2)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, ((words, _), images) in enumerate(zip(columns, pictures, strict=True)):
        left = column * (width + 2)
        draw.multiline_text((left + 2, 1), words, fill="black", font=font, spacing=2)
        for row, image in enumerate(images):
            sheet.paste(image, (left, head + row * (height + 2)))
    return sheet


def enlarged(picture: Image.Image) -> Image.Image:
    """By a whole number, until it is at least SIDE wide."""
    factor = -(-SIDE // picture.width)
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)
