"""Attention over tokens, fused projections and `scaled_dot_product_attention` throughout."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ldm.models.embeddings import rotate


def check_heads(width: int, heads: int) -> None:
    """Refuses a width that the heads cannot share equally."""
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} attention heads cannot share a width of {width}: set a divisor")


def attend(
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b n w"]:
    """Softmax attention of each query over the keys that count; heads joined in the result."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    allowed = None if mask is None else mask[:, None, None]
    if query.is_cpu and query.dtype == torch.bfloat16 and query.shape[2] * key.shape[2] <= 2**16:
        # torch 2.15's CPU kernel takes 25 ms to go back through 64 x 64 tokens in bfloat16 where
        # the plain products take 4 ms, which would be a third of a small network's step.
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        if allowed is not None:
            weights = weights.masked_fill(~allowed, -torch.inf)
        mixed = weights.softmax(-1) @ value
    else:
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return mixed.transpose(1, 2).flatten(2)


class RMSNorm(nn.RMSNorm):
    """x / root mean square of x, times a gain, in the type of x.

    torch's own leaves its fused kernel when autocast hands it x of another type than the gain.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Over the last axis."""
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens over themselves, with one fused projection.

    `closed` has no way out, and nobody reads what its queries find: its keys and values serve
    others.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        qk_norm: bool = False,
        closed: bool = False,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = None if closed else nn.Linear(width, width)
        open_norm = qk_norm and not closed
        self.query_norm = RMSNorm(width // heads) if open_norm else nn.Identity()
        self.key_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()

    def project(self, x: Float[Tensor, "b n w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both normalised where asked) and values, each `[b n heads d]`."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.query_norm(query), self.key_norm(key), value

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        mask: Bool[Tensor, "b n"] | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """`angles` are the tokens' places, as `rotary_angles` tells them."""
        assert self.out is not None
        query, key, value = self.project(x)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        mixed: Tensor = self.out(attend(query, key, value, mask))
        return mixed


class CrossAttention(nn.Module):
    """Multi-head attention of image tokens over the condition's tokens."""

    def __init__(
        self,
        width: int,
        context_width: int,
        heads: int,
        *,
        bias: bool = True,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(context_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width)
        self.query_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        tokens: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b n w"]:
        """Padded tokens (mask False) have no influence."""
        query = self.query_norm(self.query(x).unflatten(-1, (self.heads, -1)))
        key, value = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).unbind(2)
        mixed: Tensor = self.out(attend(query, self.key_norm(key), value, mask))
        return mixed


class TextPooling(nn.Module):
    """One vector of all tokens: their mean, with a place of its own, asks them by attention.

    Imagen (arXiv 2205.11487, section 2.3) adds it to the time embedding; this is DeepFloyd IF's
    form, which diffusers calls `addition_embed_type="text"`.
    """

    def __init__(self, text_width: int, width: int, heads: int) -> None:
        super().__init__()
        check_heads(text_width, heads)
        self.heads = heads
        self.norm_in = nn.LayerNorm(text_width)
        self.place = nn.Parameter(torch.randn(1, text_width) * text_width**-0.5)
        self.query = nn.Linear(text_width, text_width)
        self.key_value = nn.Linear(text_width, 2 * text_width)
        self.leave = nn.Linear(text_width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "b w"]:
        """Padded tokens (mask False) have no influence."""
        tokens = self.norm_in(tokens)
        if mask is None:
            mean = tokens.mean(dim=1, keepdim=True)
        else:
            counts = mask[..., None].to(tokens.dtype)
            mean = (tokens * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
            mask = nn.functional.pad(mask, (1, 0), value=True)
        asking = mean + self.place
        query = self.query(asking).unflatten(-1, (self.heads, -1))
        both = self.key_value(torch.cat([asking, tokens], dim=1))
        key, value = both.unflatten(-1, (2, self.heads, -1)).unbind(2)
        pooled: Tensor = self.norm_out(self.leave(attend(query, key, value, mask)[:, 0]))
        return pooled


class GatedFeedForward(nn.Module):
    """Linear to twice the hidden width, one half times the activation of the other, Linear back.

    `torch.nn.functional.gelu` makes GEGLU, `silu` SwiGLU (arXiv 2002.05202). The first half of
    the fused projection is the value, the second the gate.
    """

    def __init__(self, width: int, hidden: int, *, swish: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 2 * hidden)
        self.leave = nn.Linear(hidden, width)
        self.swish = swish

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Each token by itself."""
        value, gate = self.enter(x).chunk(2, dim=-1)
        gate = nn.functional.silu(gate) if self.swish else nn.functional.gelu(gate)
        mixed: Tensor = self.leave(value * gate)
        return mixed


class FeedForward(nn.Module):
    """Linear, GELU (tanh form, as in DiT), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Each token by itself."""
        mixed: Tensor = self.leave(nn.functional.gelu(self.enter(x), approximate="tanh"))
        return mixed


def zero(layer: nn.Module) -> None:
    """Sets a layer's parameters to zero, so that what it closes starts as nothing."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
