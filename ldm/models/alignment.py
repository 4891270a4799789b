"""Alignment of a denoiser's inner tokens with frozen features of the clean picture (REPA)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.models.layers import at_least_float32
from ldm.models.perceptual import FeatureMaps
from ldm.types import Image, Network


class TokenAlignment(nn.Module):
    """Block number `block` of a network is asked to know what frozen features know (REPA, arXiv
    2410.06940, section 3.2).

    width: of the block's tokens, or the channels of its feature map.
    features: the last of their maps, `feature_width` wide, is brought to the tokens' grid.
    hidden: width of the projection, a network of three layers that is trained along.
    weight: of this loss beside the denoising one.
    """

    def __init__(
        self,
        features: FeatureMaps,
        *,
        block: int,
        width: int,
        feature_width: int,
        hidden: int = 2048,
        weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = features
        self.projection = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, feature_width),
        )
        self.block = block
        self.weight = weight
        self.seen: Tensor | None = None

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Keep what the block makes within. ValueError where the network has no such block."""
        if not 0 <= self.block < len(network.blocks):
            raise ValueError(
                f"module.alignment.block={self.block} does not exist: the network has "
                f"{len(network.blocks)}, from 0"
            )
        watch = network.blocks[self.block].register_forward_hook(self._see)
        try:
            yield
        finally:
            watch.remove()

    def _see(self, block: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        self.seen = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens

    def forward(self, image: Image) -> Float[Tensor, "b"]:
        """`weight` times one minus the mean cosine between projected tokens and the picture's
        features, a sample. What was kept is let go.

        Tokens stand row by row on a grid of the picture's shape; ValueError where they cannot.
        """
        assert self.seen is not None
        tokens, self.seen = self.seen, None
        rows, columns = grid_of(tokens.shape[1], image.shape[2], image.shape[3])
        with torch.no_grad():
            told = at_least_float32(self.features(image)[-1])
            told = F.interpolate(told, size=(rows, columns), mode="bilinear", antialias=True)
        projected = at_least_float32(self.projection(tokens))
        cosine = F.cosine_similarity(projected, told.flatten(2).transpose(1, 2), dim=-1)
        return self.weight * (1 - cosine.mean(dim=1))


def grid_of(count: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of `count` tokens over a picture of so many pixels."""
    rows = round((count * height / width) ** 0.5)
    if rows < 1 or rows * (count // rows) != count or count // rows * height != rows * width:
        raise ValueError(
            f"{count} tokens stand on no grid of a {height}x{width} picture's shape: align a block "
            "that makes one for each patch (a network with registers or masked tokens has others)"
        )
    return rows, count // rows
