"""Prompt to picture: encode the text, run the reverse diffusion, decode the latent."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pictures
from PIL.PngImagePlugin import PngInfo

from ldm.diffusion import Denoiser, Estimate, Guided, Sampler, Watched
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.codec import LatentCodec
from ldm.types import Image, Latent, Time, draws_for_seeds


@dataclass(frozen=True)
class TextToImage:
    """A picture for each (prompt, seed), the same in any batch and on any rank.

    `guidance` is the scale of classifier-free guidance (1 is none); `precision` is what autocast
    computes the networks in, None for the weights' own.
    """

    denoiser: Denoiser
    sampler: Sampler
    codec: LatentCodec
    captions: CaptionEncoder
    image_size: int
    guidance: float = 1.0
    precision: torch.dtype | None = None

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        *,
        watch: Callable[[Latent, Time, Estimate], None] | None = None,
    ) -> Image:
        """`[len(prompts) 3 H W]` in [-1, 1]; `negative` is what guidance leads away from, and
        `watch` sees each estimate (Watched)."""
        device = self.codec.mean.device
        shape = self.codec.latent_shape(self.image_size)
        # On the CPU, so that a seed is the same picture on every kind of device.
        draws = draws_for_seeds(seeds, torch.device("cpu"))
        noise = draws.normal(shape, "start").to(device)
        on_device = draws_for_seeds(seeds, device)
        with torch.autocast(device.type, self.precision, enabled=self.precision is not None):
            condition = self.captions(list(prompts))
            denoiser: Denoiser = self.denoiser
            if self.guidance != 1.0:
                null = self.captions([negative] * len(prompts))
                denoiser = Guided(denoiser, null, self.guidance)
            if watch is not None:
                denoiser = Watched(denoiser, watch)
            latent = self.sampler(denoiser, noise, condition, on_device)
            return self.codec.decode(latent).float()

    def batches(
        self, prompts: Sequence[str], seeds: Sequence[int], batch_size: int, negative: str = ""
    ) -> Iterator[Image]:
        """The same in batches, so that memory is bounded whatever the number of prompts."""
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            yield self(prompts[part], seeds[part], negative)


def to_picture(image: torch.Tensor) -> Pictures.Image:
    """One image `[3 H W]` in [-1, 1] as 8-bit RGB, rounded to the nearest level."""
    levels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Pictures.fromarray(levels.permute(1, 2, 0).numpy())


def save_png(picture: Pictures.Image, path: Path, texts: Mapping[str, Any]) -> None:
    """Write a PNG whose text chunks say how it was made."""
    information = PngInfo()
    for key, value in texts.items():
        information.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    picture.save(path, pnginfo=information)


def grid(images: Iterable[torch.Tensor], columns: int) -> Pictures.Image:
    """Images `[3 H W]` in rows of `columns`, two white pixels between them."""
    pictures = [to_picture(image) for image in images]
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Pictures.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * (width + 2), row * (height + 2)))
    return sheet
