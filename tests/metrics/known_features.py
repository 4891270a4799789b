"""Features for tests, of which everything is known."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Pixels:
    """The first pixels of a picture; a caption's features are normal numbers made from its text."""

    def __init__(self, width: int = 6) -> None:
        self.width = width
        self.name = f"pixels-{width}"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.width].float()

    def texts(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.text(caption) for caption in captions])

    def text(self, caption: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:7], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def to(self, device: torch.device) -> "Pixels":
        return self


def as_images(features: Tensor) -> Tensor:
    """Pictures `[b 3 8 8]` whose `Pixels` are these."""
    images = torch.zeros(len(features), 3 * 8 * 8)
    images[:, : features.shape[1]] = features
    return images.view(-1, 3, 8, 8)
