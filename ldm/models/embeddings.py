"""Numbers as vectors: times, positions, and the small networks that take them in."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.types import Condition, Latent


def fourier_features(
    value: Float[Tensor, "*b"], width: int, *, max_period: float = 10_000.0, shift: float = 0.0
) -> Float[Tensor, "*b width"]:
    """cos, then sin, of `value` at width/2 frequencies from 1 down to about 1/max_period, float32.

    "Attention Is All You Need", section 3.5, as diffusion networks use it for the time step:
    frequency i is max_period ** -(i / (width/2 - shift)). The DiT and SD weights were trained with
    shift 0; diffusers' DiT computes shift 1.
    """
    half = width // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=value.device)
    angle = value[..., None].float() * torch.exp(exponent / (half - shift))
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class VectorEmbedding(nn.Module):
    """Linear, SiLU, Linear: takes a vector of features to the width of a modulation."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(in_width, width)
        self.leave = nn.Linear(width, width)

    def forward(self, features: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """`[b i]` or `[b l i]`, of any float type, to the same with width o."""
        hidden = self.enter(features.to(self.enter.weight.dtype))
        embedding: Tensor = self.leave(nn.functional.silu(hidden))
        return embedding


class TimeEmbedding(nn.Module):
    """The time t in [0, 1], as Fourier features of `scale * t + offset`, through a small network.

    `scale` 1000 and `offset` 0 suit a new network. Weights trained on the N steps of a table were
    told N t - 1, the number of a step (offset -1); SiT's were told 1 - t (scale -1, offset 1).
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        scale: float = 1000.0,
        offset: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.scale = scale
        self.offset = offset
        self.shift = shift
        self.network = VectorEmbedding(features, width)

    def forward(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b o"]:
        """`[b]` to `[b o]`."""
        place = self.scale * t + self.offset
        embedding: Tensor = self.network(fourier_features(place, self.features, shift=self.shift))
        return embedding


def sincos_positions(
    rows: int,
    columns: int,
    width: int,
    *,
    first: tuple[int, int] = (0, 0),
    spacing: float = 1.0,
    device: torch.device | None = None,
) -> Float[Tensor, "n width"]:
    """Fixed positions of a grid, row by row, `[rows * columns, width]`, float32.

    The first half of a vector tells the column, the second the row, each as sines then cosines
    (MAE's table, which DiT uses). Cell (i, j) stands at (first + (i, j)) * spacing. Computed in
    float64 and rounded once.
    """
    if width % 4:
        raise ValueError(f"width {width} is no multiple of 4, as 2-D sine positions need")
    quarter = width // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    # Published tables round the places themselves to float32.
    row, column = torch.meshgrid(
        (torch.arange(rows, dtype=torch.float32, device=device) + first[0]) * spacing,
        (torch.arange(columns, dtype=torch.float32, device=device) + first[1]) * spacing,
        indexing="ij",
    )
    parts = []
    for place in (column, row):
        angle = place.reshape(-1, 1) * omega
        parts += [torch.sin(angle), torch.cos(angle)]
    return torch.cat(parts, dim=1).float()


def rotary_angles(
    rows: int, columns: int, head_width: int, *, device: torch.device | None = None
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n r"]]:
    """Cosines and sines that rotate pairs of a head's channels by a token's place on a grid.

    Each `[rows * columns, head_width / 2]`: the first half of the pairs turns with the row, the
    second with the column (RoPE, arXiv 2104.09864, on two axes as in EVA-02 and LightningDiT).
    """
    if head_width % 4:
        raise ValueError(
            f"heads of width {head_width} cannot turn on two axes: use a multiple of 4"
        )
    quarter = head_width // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    row = torch.arange(rows, dtype=torch.float64, device=device).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64, device=device).repeat(rows)
    angle = torch.cat([row[:, None] * omega, column[:, None] * omega], dim=1)
    return torch.cos(angle).float(), torch.sin(angle).float()


def rotate(
    x: Float[Tensor, "b n heads d"], angles: tuple[Tensor, Tensor]
) -> Float[Tensor, "b n heads d"]:
    """Turns neighbouring channel pairs (2i, 2i+1) of every head by the token's angles, `[n r]`, or
    `[b n r]` where samples differ."""
    cosine, sine = (angle.to(x.dtype).unsqueeze(-2) for angle in angles)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return turned.flatten(-2)


def with_sizes(condition: Condition, sizes: Float[Tensor, "b k"]) -> Condition:
    """The condition that is told of k numbers a sample too: SDXL's micro-conditioning (arXiv
    2307.01952, 2.2), where they are the original height and width, the top and left of the crop,
    and the target height and width, in pixels.

    256 Fourier features of each stand behind the pooled vector, which a network takes in with
    `pooled_width` 256 k larger. Give the null condition of guidance the same sizes.
    """
    features = fourier_features(sizes, 256).flatten(1)
    parts = [features] if condition.pooled is None else [condition.pooled, features]
    pooled = torch.cat([part.to(condition.tokens.dtype) for part in parts], dim=1)
    return replace(condition, pooled=pooled)


def beside(
    x_t: Latent, condition: Condition, channels: int, blank: Sequence[float]
) -> Float[Tensor, "b k h w"]:
    """The noisy latent of so many channels, with those of the spatial condition behind its own.

    `blank` has a number for each of these: what stands there when nothing is told. ValueError where
    network and condition disagree about how many there are.
    """
    if x_t.shape[1] != channels:
        raise ValueError(
            f"the network takes latents of {channels} channels, and these have {x_t.shape[1]}: set "
            f"backbone.in_channels={x_t.shape[1]}"
        )
    told = condition.spatial
    if told is None and not blank:
        return x_t
    if told is None:
        told = x_t.new_tensor(blank)[:, None, None].expand(len(x_t), -1, *x_t.shape[2:])
    if told.shape[1] != len(blank):
        raise ValueError(
            f"the spatial condition has {told.shape[1]} channels and the network takes "
            f"{len(blank)}: give backbone.spatial a number for each, which stands there when "
            "nothing is told"
        )
    return torch.cat([x_t, told.to(x_t)], dim=1)
