"""Micro-conditioning: the network is told how large a picture was and where it was cut (SDXL, arXiv
2307.01952, section 2.2), so that small and cropped pictures can be learned from and not drawn."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.captions_joined import leaves_of, read_apart
from ldm.frozen.fingerprints import text_fingerprint
from ldm.models import with_sizes
from ldm.types import Condition

COUNT = 6  # numbers a picture: original height and width, top and left of the cut, height and width


class SizedCaptions:
    """A text encoder whose pooled vector tells of `COUNT` sizes too, 256 features of each.

    By themselves captions tell of a picture that was `size` pixels large from the start and not
    cut, which is what one wants to draw; a training puts each picture's own sizes there by `told`.
    """

    def __init__(self, encoder: CaptionEncoder, size: int) -> None:
        self.encoder = encoder
        self.size = size
        self.width = encoder.width
        self.pooled_width = encoder.pooled_width + 256 * COUNT
        self.leaves = leaves_of(encoder)

    def to(self, device: torch.device) -> None:
        """Move the encoder."""
        self.encoder.to(device)

    def fingerprint(self) -> str:
        """Of the encoder and of the size that it tells."""
        return text_fingerprint((self.size, self.encoder.fingerprint()), {})

    def __call__(self, captions: list[str]) -> Condition:
        """The sizes of a picture as it should be drawn."""
        return self._whole(self.encoder(captions))

    def apart(self, captions: Sequence[list[str]]) -> Condition:
        """The same where each encoder reads captions of its own."""
        return self._whole(read_apart(self.encoder, captions))

    def _whole(self, condition: Condition) -> Condition:
        whole = torch.tensor([self.size, self.size, 0, 0, self.size, self.size])
        return with_sizes(condition, whole.to(condition.tokens).expand(len(condition), COUNT))

    def told(
        self,
        condition: Condition,
        original: Int[Tensor, "b 2"],
        corner: Int[Tensor, "b 2"],
        size: tuple[int, int],
    ) -> Condition:
        """The condition with the sizes of real pictures: each one's stored height and width, the
        top and left of what was cut out of it once it was scaled, and the height and width of
        that."""
        assert condition.pooled is not None
        plain = replace(condition, pooled=condition.pooled[:, : self.encoder.pooled_width])
        target = torch.tensor(size, device=original.device).expand(len(original), 2)
        return with_sizes(plain, torch.cat([original, corner, target], dim=1).to(plain.tokens))
