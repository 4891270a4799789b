"""A text transformer that is trained with the denoiser, as in the first text-to-image latent
diffusion models (arXiv 2112.10752, section 4.3.1)."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ldm.models.attention import FeedForward, SelfAttention
from ldm.types import Condition, Latent, Time


class TextLayer(nn.Module):
    """Attention over the caption in both directions, then feed-forward; pre-norm residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(
        self, x: Float[Tensor, "b l w"], mask: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l w"]:
        """Padded tokens (mask False) have no influence."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feed_forward(self.feed_norm(x))


class TextConditioned(nn.Module):
    """A denoising network and the text transformer that tells it about captions.

    `Condition.tokens` holds the numbers of tokens below `vocabulary`, up to `length` of them; the
    network sees states of `width` in their place, which is its `text_width`. `blocks` are the
    network's.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        width: int,
        depth: int,
        heads: int,
        vocabulary: int = 49408,
        length: int = 77,
    ) -> None:
        super().__init__()
        self.network = network
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(TextLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    @property
    def blocks(self) -> nn.ModuleList:
        """The network's."""
        blocks: nn.ModuleList = self.network.blocks  # type: ignore[assignment]
        return blocks

    def states(
        self, numbers: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l w"]:
        """What the transformer says of the tokens. ValueError for more than `length` of them."""
        count, most = numbers.shape[1], len(self.positions)
        if count > most:
            raise ValueError(
                f"captions of {count} tokens exceed the text transformer's {most}: set "
                f"backbone.length={count}, or text.encoder.length={most}"
            )
        x = self.embedding(numbers) + self.positions[:count]
        for layer in self.layers:
            x = layer(x, mask)
        said: Tensor = self.norm(x)
        return said

    def forward(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        """As the network itself."""
        if condition.tokens.shape[2] != 1:
            raise ValueError(
                f"the network's own text transformer takes numbers of tokens, and the text encoder "
                f"gives states of width {condition.tokens.shape[2]}: set text=own"
            )
        tokens = self.states(condition.tokens[..., 0].long(), condition.mask)
        predicted: Tensor = self.network(x_t, t, replace(condition, tokens=tokens))
        return predicted
