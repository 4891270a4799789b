"""Alignment of a denoiser's inner tokens with frozen features of the clean picture (REPA)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ldm.types import Condition, Latent, Network, Time


class AlignedNetwork(nn.Module):
    """A network whose block number `block` is asked to know what frozen features know (REPA, arXiv
    2410.06940, section 3.2).

    Call it as the network itself, then `alignment(features)` for a loss to add to the denoising
    one, published with weight 0.5. `width` is that of the block's tokens, or the channels of its
    feature map; `feature_width` that of the features. Sampling needs `network` alone.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        block: int,
        width: int,
        feature_width: int,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        if not isinstance(network, Network):
            raise ValueError(f"{type(network).__name__} has no blocks, so none can be aligned")
        if not 0 <= block < len(network.blocks):
            raise ValueError(
                f"block={block} does not exist: the network has {len(network.blocks)}, from 0"
            )
        self.network = network
        self.projection = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, feature_width),
        )
        self.block = block
        self.seen: Tensor | None = None

    @property
    def blocks(self) -> nn.ModuleList:
        """The network's."""
        blocks: nn.ModuleList = self.network.blocks
        return blocks

    def forward(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        """What the network says; the chosen block's output is kept for `alignment`."""
        watch = self.blocks[self.block].register_forward_hook(self._see)
        try:
            predicted: Tensor = self.network(x_t, t, condition)
        finally:
            watch.remove()
        return predicted

    def _see(self, block: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        self.seen = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens

    def alignment(self, features: Float[Tensor, "b n f"]) -> Float[Tensor, "b"]:
        """One minus the mean cosine between projected tokens and features, 0 ... 2 a sample.

        `features` stand row by row on the grid of the block's tokens. ValueError where the counts
        differ. What was kept is let go.
        """
        if self.seen is None:
            raise ValueError("call the network first: no tokens were kept")
        tokens, self.seen = self.seen, None
        if tokens.shape[1] != features.shape[1]:
            raise ValueError(
                f"block {self.block} makes {tokens.shape[1]} tokens and there are "
                f"{features.shape[1]} features: resize the features to the tokens' grid"
            )
        projected = self.projection(tokens)
        return 1 - cosine_similarity(projected.float(), features.float(), dim=-1).mean(dim=1)
