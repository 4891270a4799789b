"""Frozen networks that metrics look through: pictures in [-1, 1] to one row of numbers each.

Every one of them first rounds pictures to the 8 bits of a PNG, then resizes them as its literature
does, then runs in float32 whatever precision the training has. Several metrics on one network cost
one pass: the last batch's features are remembered.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.metrics.features import to_bytes
from ldm.types import Image

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class TwoTowers(Protocol):
    """What is asked of an open_clip model."""

    def encode_image(self, image: Tensor) -> Tensor:
        """`[b width]` from normalised pictures."""

    def encode_text(self, text: Tensor) -> Tensor:
        """`[b width]` from token ids `[b l]`."""

    def to(self, device: torch.device) -> Any:
        """Moves the weights."""

    def eval(self) -> Any:
        """Leaves training mode."""


class ClipFeatures:
    """Both towers of an open_clip model as a `TextAndImageFeatures`: projected embeddings, not
    normalised to length one. Plain object: never trained, sharded or checkpointed.

    `model` has `encode_image` and `encode_text`; `tokenizer` takes a list of captions to token ids;
    `image_size` is the side in pixels that the picture tower takes.
    """

    def __init__(
        self,
        model: TwoTowers,
        tokenizer: Callable[[list[str]], Tensor],
        name: str,
        *,
        image_size: int,
        width: int,
        mean: Sequence[float] = _CLIP_MEAN,
        std: Sequence[float] = _CLIP_STD,
    ) -> None:
        self.model = model
        self.model.eval()
        self.tokenizer = tokenizer
        self.name = f"{name}/bicubic-{image_size}"
        self.width = width
        self.image_size = image_size
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]
        self._last = _LastBatch()

    def to(self, device: torch.device) -> "ClipFeatures":
        """Moves the model; returns itself."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, images: Image) -> Float[Tensor, "b d"]:
        """`[b width]` float32."""
        return self._last.of(images, self._images)

    @torch.no_grad()
    def _images(self, images: Image) -> Tensor:
        self.to(images.device)
        pixels = resize_and_crop(images, self.image_size)
        with torch.autocast(images.device.type, enabled=False):
            return self.model.encode_image((pixels / 255 - self.mean) / self.std).float()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """`[b width]` float32; a caption longer than the context is cut, as CLIP's users do."""
        tokens = self.tokenizer(list(captions)).to(self.mean.device)
        with torch.autocast(tokens.device.type, enabled=False):
            return self.model.encode_text(tokens).float()


def resize_and_crop(images: Image, side: int) -> Float[Tensor, "b 3 s s"]:
    """CLIP's preparation in 0..255: the shorter side brought to `side` by bicubic resampling with
    antialiasing, rounded to 8 bits as PIL does, and the middle square cut out."""
    height, width = images.shape[2:]
    scale = side / min(height, width)
    size = (max(side, int(height * scale)), max(side, int(width * scale)))
    pixels = to_bytes(images).float()
    if size != (height, width):
        pixels = interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = pixels.round().clamp(0, 255)
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return pixels[:, :, top : top + side, left : left + side]


class _LastBatch:
    """Remembers what a function made of the last pictures it was given."""

    def __init__(self) -> None:
        self._images: Tensor | None = None
        self._version = -1  # torch counts changes in place
        self._features = torch.empty(0)

    def of(self, images: Image, function: Callable[[Image], Tensor]) -> Tensor:
        if self._images is not images or self._version != images._version:
            self._features = function(images)
            self._images, self._version = images, images._version
        return self._features
