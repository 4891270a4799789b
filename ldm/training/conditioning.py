"""What the network is told of a training batch: captions, of which some are dropped, the sizes of
pictures, channels beside the latent, and which patches it looks at."""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.frozen import LatentCodec
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.captions_joined import leaves_of, read_apart
from ldm.frozen.sizes import SizedCaptions
from ldm.frozen.spatial import BroughtBeside, enlarged, painted
from ldm.models import MasksPatches
from ldm.types import Condition, Draws, Image


@runtime_checkable
class SpatialCondition(BroughtBeside, Protocol):
    """Makes channels that stand beside the noisy latent: of the picture itself while training, of
    one that is brought when drawing."""

    def __call__(self, image: Image, codec: LatentCodec, draws: Draws) -> Float[Tensor, "b s h w"]:
        """On the latent's grid."""


class Inpainting:
    """A box of each picture is to be painted: of any size and place, and all of it with probability
    `whole`, so that the network draws from text alone too."""

    paints = True

    def __init__(self, whole: float = 0.25) -> None:
        if not 0 <= whole <= 1:
            raise ValueError(f"whole={whole} is a probability: set 0.25, or 0 for boxes only")
        self.whole = whole

    def __call__(self, image: Image, codec: LatentCodec, draws: Draws) -> Float[Tensor, "b s h w"]:
        """One channel of mask and those of the latent."""
        return painted(image, self.boxes(image, draws), codec)

    def brought(
        self, image: Image, paint: Float[Tensor, "b 1 H W"] | None, codec: LatentCodec
    ) -> Float[Tensor, "b s h w"] | None:
        """Nothing without a mask: then all of the picture may change."""
        return None if paint is None else painted(image, paint, codec)

    def boxes(self, image: Image, draws: Draws) -> Float[Tensor, "b 1 H W"]:
        """1 where it is to be painted."""
        place = draws.uniform((2, 2), "inpainting").to(image.device)
        every = (draws.uniform((), "inpainting whole") < self.whole).to(image.device)
        inside = []
        for axis, count in enumerate(image.shape[2:]):
            middle = (torch.arange(count, device=image.device) + 0.5) / count
            extent = 0.1 + 0.9 * place[:, axis, 1:]
            start = place[:, axis, :1] * (1 - extent)
            within = (middle >= start) & (middle < start + extent)
            inside.append(within | every[:, None])
        rows, columns = inside
        return (rows[:, None, :, None] & columns[:, None, None, :]).to(image)


class Enlarging:
    """The picture `factor` times smaller, made large again; nothing (zeros) with probability
    `nothing`, so that the network draws from text alone too."""

    paints = False

    def __init__(self, factor: int, nothing: float = 0.1) -> None:
        if factor < 2 or not 0 <= nothing <= 1:
            raise ValueError(
                f"factor={factor}, nothing={nothing}: set a factor of 2 or more and a probability"
            )
        self.factor, self.nothing = factor, nothing

    def __call__(self, image: Image, codec: LatentCodec, draws: Draws) -> Float[Tensor, "b s h w"]:
        """As many channels as the latent has."""
        told = enlarged(image, self.factor, codec)
        keep = (draws.uniform((), "enlarging") >= self.nothing).to(told)
        return told * keep[:, None, None, None]

    def brought(
        self, image: Image, paint: Float[Tensor, "b 1 H W"] | None, codec: LatentCodec
    ) -> Float[Tensor, "b s h w"]:
        """Of `image`, which is as large as what is drawn; no more of it than `factor` times smaller
        shows is told."""
        return enlarged(image, self.factor, codec)


class Conditioning:
    """What a batch's condition is made of, besides whole captions.

    encoder_dropout: probability with which each of several text encoders reads the empty caption,
        one by one (arXiv 2403.03206, appendix B.3, has 0.464).
    token_masking: share of a picture's patches that the inner blocks do not look at.
    spatial: what stands beside the noisy latent.
    """

    def __init__(
        self,
        *,
        encoder_dropout: float = 0.0,
        token_masking: float = 0.0,
        spatial: SpatialCondition | None = None,
    ) -> None:
        for name, value in (("encoder_dropout", encoder_dropout), ("token_masking", token_masking)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} is a share: set it in [0, 1), 0 for none")
        self.encoder_dropout = encoder_dropout
        self.token_masking = token_masking
        self.spatial = spatial

    def refuse_unfit(self, network: object, captions: CaptionEncoder) -> None:
        """ValueError where a part cannot do what is asked of it."""
        if self.encoder_dropout and leaves_of(captions) < 2:
            raise ValueError(
                "module.conditioning.encoder_dropout drops one of several text encoders, and there "
                "is one: set module.condition_dropout, or text=sd3"
            )
        if self.token_masking:
            if not isinstance(network, MasksPatches):
                raise ValueError(
                    "module.conditioning.token_masking leaves patches out, which a "
                    f"{type(network).__name__} cannot: set it to 0, or backbone=dit_emoji"
                )
            network.patches(0, 0)

    def refuse_stored(self) -> None:
        """ValueError where text states that were stored for the whole caption cannot serve."""
        if self.encoder_dropout:
            raise ValueError(
                "module.conditioning.encoder_dropout reads captions anew, and the latent shards "
                "hold text states: encode them without --text, or set it to 0"
            )
        if self.spatial is not None:
            _picture({}, "module.conditioning.spatial tells of pictures")

    def told(
        self,
        captions: CaptionEncoder,
        codec: LatentCodec,
        batch: dict[str, Any],
        draws: Draws | None,
        *,
        dropping: bool = False,
    ) -> Condition:
        """Captions, sizes and spatial channels (which need draws); with `dropping` the captions of
        some encoders are left out."""
        condition = self._read(captions, batch["caption"], draws if dropping else None)
        if isinstance(captions, SizedCaptions):
            picture = _picture(batch, "text.encoder tells of sizes")
            original, corner = batch["original"], batch["corner"]
            condition = captions.told(
                condition, original, corner, (picture.shape[2], picture.shape[3])
            )
        if self.spatial is not None and draws is not None:
            picture = _picture(batch, "module.conditioning.spatial tells of pictures")
            condition = replace(condition, spatial=self.spatial(picture, codec, draws))
        return condition

    def masked(self, condition: Condition, network: Any, latent: Tensor, draws: Draws) -> Condition:
        """The condition with the patches that are looked at, where some are not."""
        if not self.token_masking:
            return condition
        count = network.patches(latent.shape[2], latent.shape[3])
        keep = max(1, round((1 - self.token_masking) * count))
        order = draws.uniform((count,), "token masking").argsort(dim=1)
        return replace(condition, kept=order[:, :keep].sort(dim=1).values)

    def _read(self, captions: CaptionEncoder, texts: list[str], draws: Draws | None) -> Condition:
        if not self.encoder_dropout or draws is None:
            return captions(texts)
        # On the CPU: which captions are read is decided there.
        here = replace(draws, device=torch.device("cpu"))
        keep = here.uniform((leaves_of(captions),), "encoder dropout") >= self.encoder_dropout
        return read_apart(
            captions,
            [
                [text if kept else "" for text, kept in zip(texts, column, strict=True)]
                for column in keep.T.tolist()
            ],
        )


def _picture(batch: dict[str, Any], why: str) -> Image:
    if "image" not in batch:
        raise ValueError(f"{why}, and latent shards hold none: set data=shards")
    image: Image = batch["image"]
    return image
