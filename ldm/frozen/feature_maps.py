"""Frozen vision networks as feature maps, for losses: gradients pass through to the pictures."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.types import Image

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dinov2Maps:
    """The last patch tokens of a DINOv2 in transformers' format, from a local folder, as one map.

    Pictures are resized so that the tokens stand on a grid of `grid` x `grid`. A plain object:
    never trained, sharded or checkpointed.
    """

    def __init__(self, folder: str, *, grid: int = 16) -> None:
        # Heavy, and wanted by few: imported when it is used.
        from transformers import Dinov2Model  # noqa: PLC0415

        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder}: no config.json; name a folder that holds a DINOv2 in transformers' "
                "format, such as a download of facebook/dinov2-large"
            )
        self.model = Dinov2Model.from_pretrained(folder, local_files_only=True)
        self.model.eval().float().requires_grad_(False)
        self.grid = grid
        self.side: int = grid * self.model.config.patch_size
        self.mean = torch.tensor(_MEAN)[:, None, None]
        self.std = torch.tensor(_STD)[:, None, None]

    def to(self, device: torch.device) -> "Dinov2Maps":
        """Moves the model; returns itself."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, images: Image) -> list[Float[Tensor, "b c h w"]]:
        """One map `[b width grid grid]`, on the device that `to` named."""
        pixels = (images + 1) / 2
        if pixels.shape[2:] != (self.side, self.side):
            pixels = interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)
        tokens = self.model((pixels - self.mean) / self.std).last_hidden_state[:, 1:]
        return [tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))]
