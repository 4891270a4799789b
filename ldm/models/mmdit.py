"""The multimodal diffusion transformer of Stable Diffusion 3 (arXiv 2403.03206) and 3.5."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.models.attention import check_heads
from ldm.models.dit_blocks import PatchEmbedding, PatchOutput
from ldm.models.embeddings import TimeEmbedding, VectorEmbedding, beside, sincos_positions
from ldm.models.mmdit_blocks import JointBlock
from ldm.types import Condition, Latent, Time


class MMDiT(nn.Module):
    """Image and text tokens in one attention, steered by the time and the pooled text.

    pooled_width: of `Condition.pooled`; 0 steers by the time alone.
    dual: how many of the first blocks have a second attention over the image alone.
    grid: rows of the largest table of positions, of which an image takes the middle; positions
        are `base / grid` apart. Both None: positions count cells from the corner.
    attend_padding: attends to padded tokens too, as the published weights did in training.
    spatial: a number for each channel of `Condition.spatial`, which stands there when nothing is
        told.
    """

    def __init__(
        self,
        in_channels: int,
        text_width: int,
        *,
        width: int,
        depth: int,
        heads: int,
        pooled_width: int = 0,
        patch: int = 2,
        out_channels: int | None = None,
        qk_norm: bool = False,
        dual: int = 0,
        grid: int | None = None,
        base: int | None = None,
        attend_padding: bool = False,
        spatial: Sequence[float] = (),
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        if (grid is None) != (base is None):
            raise ValueError(f"grid={grid} and base={base} belong together: set both or neither")
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.text_width = text_width
        self.width = width
        self.heads = heads
        self.patch = patch
        self.pooled_width = pooled_width
        self.qk_norm = qk_norm
        self.dual = dual
        self.grid = grid
        self.base = base
        self.attend_padding = attend_padding
        self.spatial = tuple(spatial)

        self.time = TimeEmbedding(256, width)
        self.pooled = VectorEmbedding(pooled_width, width) if pooled_width else None
        self.text = nn.Linear(text_width, width)
        self.enter = PatchEmbedding(in_channels + len(spatial), width, patch)
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, qk_norm=qk_norm, dual=index < dual, last=index == depth - 1)
            for index in range(depth)
        )
        self.leave = PatchOutput(
            width, self.out_channels, patch, rms_norm=False, shared_modulation=False
        )

    def positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """The table's rows for a picture of so many patches. ValueError where it has too few."""
        if self.grid is None or self.base is None:
            return sincos_positions(rows, columns, self.width, device=device)
        if max(rows, columns) > self.grid:
            raise ValueError(
                f"{rows}x{columns} patches do not fit the table of positions: "
                f"set backbone.grid={max(rows, columns)} or more"
            )
        return sincos_positions(
            rows,
            columns,
            self.width,
            first=((self.grid - rows) // 2, (self.grid - columns) // 2),
            spacing=self.base / self.grid,
            device=device,
        )

    def embed(self, t: Time, condition: Condition) -> Tensor:
        """The time and the pooled text, `[b width]`."""
        embedding: Tensor = self.time(t)
        if self.pooled is not None:
            if condition.pooled is None:
                raise ValueError(
                    f"the MMDiT takes a pooled condition of width {self.pooled_width} and the "
                    "caption encoder gives none: set backbone.pooled_width=0"
                )
            embedding = embedding + self.pooled(condition.pooled)
        return embedding

    def forward(self, x_t: Latent, t: Time, condition: Condition) -> Tensor:
        """Rows and columns must be multiples of `patch`."""
        rows, columns = x_t.shape[2] // self.patch, x_t.shape[3] // self.patch
        x = self.enter(beside(x_t, condition, self.in_channels, self.spatial))
        x = x + self.positions(rows, columns, x.device).to(x.dtype)
        embedding = self.embed(t, condition)
        tokens = self.text(condition.tokens.to(self.text.weight.dtype))
        mask = None
        if not self.attend_padding:
            mask = torch.cat([condition.mask.new_ones(len(x), x.shape[1]), condition.mask], dim=1)
        for block in self.blocks:
            x, tokens = block(x, embedding, tokens, mask)
        predicted: Tensor = self.leave(x, embedding, rows, columns)
        return predicted
