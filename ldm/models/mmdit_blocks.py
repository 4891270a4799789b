"""The parts of the multimodal transformer: two streams with weights of their own, one attention."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm.models.attention import FeedForward, SelfAttention, attend
from ldm.models.dit_blocks import Modulation, glorot, modulate, token_norm


class Stream(nn.Module):
    """The weights of one modality in a joint block: modulation, projections, feed-forward.

    `closed` is the text in the last block, which is read and then dropped: it has no way out.
    """

    def __init__(
        self, width: int, heads: int, *, vectors: int, qk_norm: bool, closed: bool = False
    ) -> None:
        super().__init__()
        self.modulation = Modulation(width, vectors, shared=False)
        self.norm = token_norm(width, rms=False)
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm, closed=closed)
        self.feed_forward = None if closed else FeedForward(width, 4 * width)
        for layer in (self.attention, self.feed_forward):
            if layer is not None:
                glorot(layer)

    def steer(self, embedding: Float[Tensor, "b w"]) -> tuple[Tensor, ...]:
        """The modulation's vectors, each `[b w]`."""
        steer: tuple[Tensor, ...] = self.modulation(embedding, embedding)
        return steer

    def leave(
        self, x: Float[Tensor, "b n w"], mixed: Float[Tensor, "b n w"], steer: tuple[Tensor, ...]
    ) -> Float[Tensor, "b n w"]:
        """Adds what the attention mixed, as the gate lets it."""
        assert self.attention.out is not None
        return x + steer[2][:, None] * self.attention.out(mixed)

    def feed(self, x: Float[Tensor, "b n w"], steer: tuple[Tensor, ...]) -> Float[Tensor, "b n w"]:
        """Adds the feed-forward layer."""
        assert self.feed_forward is not None
        hidden = self.feed_forward(modulate(self.norm(x), steer[3], steer[4]))
        return x + steer[5][:, None] * hidden


class JointBlock(nn.Module):
    """Image and text tokens attend to each other and themselves at once (arXiv 2403.03206, 4).

    `dual` gives the image a second attention, over itself alone, as in SD 3.5 medium.
    """

    def __init__(
        self, width: int, heads: int, *, qk_norm: bool, dual: bool = False, last: bool = False
    ) -> None:
        super().__init__()
        self.image = Stream(width, heads, vectors=9 if dual else 6, qk_norm=qk_norm)
        self.text = Stream(width, heads, vectors=2 if last else 6, qk_norm=qk_norm, closed=last)
        self.second = SelfAttention(width, heads, qk_norm=qk_norm) if dual else None
        if self.second is not None:
            glorot(self.second)
        self.last = last

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        embedding: Float[Tensor, "b w"],
        tokens: Float[Tensor, "b l w"],
        mask: Bool[Tensor, "b m"] | None,
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b l w"]]:
        """`mask` covers the image tokens and then the text's, m = n + l."""
        seen, told = self.image.steer(embedding), self.text.steer(embedding)
        normed = self.image.norm(x)
        ours = self.image.attention.project(modulate(normed, seen[0], seen[1]))
        theirs = self.text.attention.project(modulate(self.text.norm(tokens), told[0], told[1]))
        key, value = (torch.cat(pair, dim=1) for pair in zip(ours[1:], theirs[1:], strict=True))
        query = ours[0] if self.last else torch.cat([ours[0], theirs[0]], dim=1)
        mixed = attend(query, key, value, mask)
        count = x.shape[1]
        x = self.image.leave(x, mixed[:, :count], seen)
        if self.second is not None:
            x = x + seen[8][:, None] * self.second(modulate(normed, seen[6], seen[7]))
        x = self.image.feed(x, seen)
        if not self.last:
            tokens = self.text.feed(self.text.leave(tokens, mixed[:, count:], told), told)
        return x, tokens
