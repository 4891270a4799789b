"""The parts of the U-Net of latent diffusion and Stable Diffusion."""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from ldm.models.attention import CrossAttention, GatedFeedForward, SelfAttention, zero


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input; starts as the identity."""

    def __init__(self, in_channels: int, channels: int, embedding_width: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, in_channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_width, channels)
        self.norm_out = nn.GroupNorm(groups, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        zero(self.conv_out)
        self.skip = (
            nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)
        )

    def forward(
        self, x: Float[Tensor, "b i h w"], embedding: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b o h w"]:
        """`embedding` is the modulation before its activation."""
        hidden = self.conv_in(silu(self.norm_in(x)))
        hidden = hidden + self.embedding(silu(embedding))[:, :, None, None]
        mixed: Tensor = self.skip(x) + self.conv_out(silu(self.norm_out(hidden)))
        return mixed


class TransformerLayer(nn.Module):
    """Attention over the picture, attention over the text, feed-forward; pre-norm residuals."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, bias=False)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, text_width, heads, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width, 4 * width)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        tokens: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b n w"]:
        """`x` holds the cells of the picture, row by row."""
        x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), tokens, mask)
        return x + self.feed_forward(self.feed_norm(x))


class SpatialTransformer(nn.Module):
    """Transformer layers on a feature map, added to it; starts as the identity.

    The projections around the layers are linear. SD 1.x stores the same numbers as 1x1
    convolutions, which `ldm.interop` reshapes.
    """

    def __init__(self, channels: int, heads: int, depth: int, text_width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.enter = nn.Linear(channels, channels)
        self.layers = nn.ModuleList(
            TransformerLayer(channels, heads, text_width) for _ in range(depth)
        )
        self.leave = nn.Linear(channels, channels)
        zero(self.leave)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        tokens: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b c h w"]:
        """With channels_last memory both reshapes are views."""
        hidden = self.enter(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for layer in self.layers:
            hidden = layer(hidden, tokens, mask)
        hidden = self.leave(hidden).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        mixed: Tensor = x + hidden
        return mixed


class Downsample(nn.Module):
    """Half the rows and columns, by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """`[b c h w]` to `[b c h/2 w/2]`."""
        halved: Tensor = self.conv(x)
        return halved


class Upsample(nn.Module):
    """Twice the rows and columns: each cell repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """`[b c h w]` to `[b c 2h 2w]`."""
        doubled: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class UNetBlock(nn.Module):
    """One step of the U-Net: a residual block, a transformer and a change of size, where given."""

    def __init__(
        self,
        residual: ResidualBlock | None = None,
        transformer: SpatialTransformer | None = None,
        resample: Downsample | Upsample | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.transformer = transformer
        self.resample = resample

    def forward(
        self,
        x: Float[Tensor, "b i h w"],
        embedding: Float[Tensor, "b e"],
        tokens: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b o h2 w2"]:
        """All blocks share this signature, so that they can be compiled and sharded alike."""
        if self.residual is not None:
            x = self.residual(x, embedding)
        if self.transformer is not None:
            x = self.transformer(x, tokens, mask)
        if self.resample is not None:
            x = self.resample(x)
        return x
