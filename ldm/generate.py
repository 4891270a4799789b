"""Prompt to picture: encode the text, run the reverse diffusion, decode the latent."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image as Pictures
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional

from ldm.diffusion import Denoiser, Guidance, Guided, Keeping, Sampler, Start, Thresholded, Watched
from ldm.diffusion.denoiser import Watch
from ldm.files import drafted
from ldm.frozen import LatentCodec
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.spatial import BroughtBeside
from ldm.types import Condition, Image, Latent, draws_for_seeds


@dataclass(frozen=True)
class Source:
    """A picture to begin from, `[1 3 H W]`: sampling starts at t = `strength` from it with noise.

    `paint` `[1 1 H W]` is 1 where it is painted anew and 0 where it is kept; between, the two are
    blended. Only latent cells that lie whole in what is kept are held while sampling.
    """

    image: Image
    strength: float
    paint: Float[Tensor, "1 1 H W"] | None = None

    def __post_init__(self) -> None:
        if self.paint is not None and self.paint.shape[2:] != self.image.shape[2:]:
            raise ValueError(
                f"the mask is {list(self.paint.shape[2:])} and the picture "
                f"{list(self.image.shape[2:])}: set a mask of the picture's size"
            )

    def keep(self, latent: Latent) -> Float[Tensor, "1 1 h w"] | None:
        """1 for the cells of the latent that are kept."""
        if self.paint is None:
            return None
        return 1 - functional.adaptive_max_pool2d(self.paint.to(latent), latent.shape[2:])

    def pasted(self, made: Image) -> Image:
        """What is kept, over what was made."""
        if self.paint is None:
            return made
        paint = self.paint.to(made)
        return paint * made + (1 - paint) * self.image.to(made)


@dataclass(frozen=True)
class TextToImage:
    """A picture for each (prompt, seed), the same in any batch and on any rank.

    `guidance` is the scale of guidance (1 is none) and `manner` how it is done; `precision` is
    what autocast computes the networks in, None for the weights' own. `beside` tells a network that
    knows of pictures about the one that is brought.
    """

    denoiser: Denoiser
    sampler: Sampler
    codec: LatentCodec
    captions: CaptionEncoder
    image_size: int
    guidance: float = 1.0
    precision: torch.dtype | None = None
    manner: Guidance = field(default_factory=Guidance)
    beside: BroughtBeside | None = None

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        *,
        source: Source | None = None,
        watch: Watch | None = None,
    ) -> Image:
        """`[len(prompts) 3 H W]` in [-1, 1]; `negative` is what guidance leads away from, and
        `watch` sees each estimate (Watched). ValueError unless there is a seed for each prompt."""
        if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
            told = "a string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise ValueError(
                f"{told} and {len(seeds)} seeds: give a list of prompts and a seed for each, such "
                'as generate(["red apple"], seeds=[0])'
            )
        device = self.codec.mean.device
        shape = self.codec.latent_shape(self.image_size)
        # On the CPU, so that a seed is the same picture on every kind of device.
        draws = draws_for_seeds(seeds, torch.device("cpu"))
        noise = draws.normal(shape, "start").to(device)
        on_device = draws_for_seeds(seeds, device)
        with torch.autocast(device.type, self.precision, enabled=self.precision is not None):
            condition = self._told(prompts, source)
            denoiser, start = self._guided(condition, negative, source), None
            if source is not None:
                latent = self.codec.encode(source.image.to(device)).expand(len(prompts), *shape)
                start = Start(latent, source.strength)
                keep = source.keep(latent)
                denoiser = denoiser if keep is None else Keeping(denoiser, latent, keep)
            if watch is not None:
                denoiser = Watched(denoiser, watch)
            made = self.sampler(denoiser, noise, condition, on_device, start=start)
            image = self.codec.decode(made).float()
        return image if source is None else source.pasted(image)

    def _told(self, prompts: Sequence[str], source: Source | None) -> Condition:
        """What the network hears: the prompts, and the picture if it listens to one."""
        condition = self.captions(list(prompts))
        if source is None or self.beside is None:
            return condition
        device = self.codec.mean.device
        paint = None if source.paint is None else source.paint.to(device)
        spatial = self.beside.brought(source.image.to(device), paint, self.codec)
        if spatial is not None:
            spatial = spatial.expand(len(prompts), *spatial.shape[1:])
        return replace(condition, spatial=spatial)

    def _guided(
        self, condition: Condition, negative: str, source: Source | None = None
    ) -> Denoiser:
        """The denoiser with guidance, which asks for the other estimate's text only if needed."""
        denoiser = self.denoiser
        if self.guidance != 1.0:
            itself = self.manner.weaker is not None and not negative
            null = condition if itself else self._told([negative] * len(condition), source)
            denoiser = Guided(denoiser, null, self.guidance, self.manner)
        if self.manner.limit is not None:
            denoiser = Thresholded(denoiser, self.manner.limit)
        return denoiser

    def batches(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        batch_size: int,
        negative: str = "",
        *,
        source: Source | None = None,
    ) -> Iterator[Image]:
        """The same in batches, so that memory is bounded whatever the number of prompts."""
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            yield self(prompts[part], seeds[part], negative, source=source)


def to_picture(image: torch.Tensor) -> Pictures.Image:
    """One image `[3 H W]` in [-1, 1] as 8-bit RGB, rounded to the nearest level."""
    levels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Pictures.fromarray(levels.permute(1, 2, 0).numpy())


def save_png(picture: Pictures.Image, path: str | Path, texts: Mapping[str, Any]) -> None:
    """Write a PNG whose text chunks say how it was made, whole or not at all."""
    path = Path(path)
    information = PngInfo()
    for key, value in texts.items():
        information.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    with drafted(path) as draft:
        picture.save(draft, format="PNG", pnginfo=information)


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
