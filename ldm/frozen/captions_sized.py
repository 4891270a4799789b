"""Text conditions that are told of sizes: SDXL's micro-conditioning (arXiv:2307.01952, 2.2)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.fingerprints import text_fingerprint
from ldm.models import with_sizes
from ldm.types import Condition

_FEATURES = 6 * 256  # as many numbers as `with_sizes` puts behind the pooled vector


class SizedCaptions:
    """A text encoder whose pooled vector is followed by features of six sizes in pixels: height and
    width of the stored picture, top and left of what was cut out of it, height and width wanted.

    Alone it tells of a picture that was stored at `size` and not cut, which is what one samples.
    """

    def __init__(self, encoder: CaptionEncoder, size: int) -> None:
        self.encoder = encoder
        self.size = size
        self.width = encoder.width
        self.pooled_width = encoder.pooled_width + _FEATURES

    def to(self, device: torch.device) -> None:
        """Move the encoder."""
        self.encoder.to(device)

    def fingerprint(self) -> str:
        """Of the encoder and of the size that it tells."""
        return text_fingerprint((self.size, self.encoder.fingerprint()), {})

    def __call__(self, captions: list[str]) -> Condition:
        """The encoder's condition, of pictures as one wants them."""
        condition = self.encoder(captions)
        wanted = [self.size, self.size, 0, 0, self.size, self.size]
        sizes = torch.tensor([wanted] * len(condition), device=condition.tokens.device)
        return with_sizes(condition, sizes.float())


def of_sizes(condition: Condition, sizes: Float[Tensor, "b 6"]) -> Condition:
    """A condition of `SizedCaptions`, told of these sizes instead."""
    assert condition.pooled is not None
    plain = condition.pooled[:, :-_FEATURES]
    return with_sizes(replace(condition, pooled=plain if plain.shape[1] else None), sizes)
