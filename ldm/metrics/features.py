"""What a metric asks of a network: pictures in, one row of numbers a picture out.

The networks themselves live in `ldm.frozen.features`. A feature's name says the network, its
weights and how pictures are resized for it, because a Frechet distance changes by whole points with
each of them; it is part of every result's name and of every reference's, and must agree.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.types import Image


@runtime_checkable
class Features(Protocol):
    """A frozen network that describes pictures; `name` holds network, weights and resize."""

    name: str
    width: int

    def __call__(self, images: Image) -> Float[Tensor, "b d"]:
        """`[b width]` float32 from pictures in [-1, 1] of any size."""

    def to(self, device: torch.device) -> "Features":
        """Moves the network; returns itself."""


@runtime_checkable
class TextAndImageFeatures(Features, Protocol):
    """A `Features` that places texts in the same space, such as CLIP."""

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """`[b width]` float32, on the network's device."""


def to_bytes(images: Image) -> UInt8[Tensor, "b 3 H W"]:
    """Pictures in [-1, 1] as they stand in a PNG, so that a picture in memory and the same picture
    read from its file have the same features."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
