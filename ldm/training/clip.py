"""Training of a small CLIP: pictures and captions into one space (Radford et al. 2021)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import ClipLoss
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldm.training.data import draws_of
from ldm.training.module import OneOptimizer
from ldm.types import Draws, Image


class ClipModule(OneOptimizer):
    """Symmetric cross-entropy over the similarities of a batch, on augmented pictures.

    `network` is an open_clip model (`encode_image`, `encode_text`, `logit_scale`); `tokenizer`
    maps captions to its tokens. The augmentation keeps what captions tell (colour, side) and
    takes away what they do not (place, size, sharpness), so that the towers also judge the
    pictures of a model that is still learning.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Callable[[list[str]], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler],
        on_nonfinite: str = "stop",
    ) -> None:
        super().__init__(optimizer, lr_schedule, on_nonfinite)
        self.network: Any = network
        self.tokenizer = tokenizer
        self.loss = ClipLoss()
        self._embedded: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The contrastive loss of one batch."""
        image = augment(batch["image"], draws_of(self, batch))
        pictures, texts = self.embed(image, batch["caption"])
        loss: Tensor = self.loss(pictures, texts, self.network.logit_scale.exp())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then keep the temperature at 1/100 or more, as CLIP does."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.network.logit_scale.clamp_(0, math.log(100))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect both embeddings; the ranking needs all of them."""
        self._embedded.append(self.embed(batch["image"], batch["caption"]))

    def on_validation_epoch_end(self) -> None:
        """Text-to-picture and picture-to-text recall@1 and @5 over the whole set."""
        pictures, texts = (torch.cat(x) for x in zip(*self._embedded, strict=True))
        self._embedded.clear()
        for name, similarity in {"text": pictures @ texts.T, "image": texts @ pictures.T}.items():
            rank = (similarity > similarity.diagonal()[:, None]).sum(1)
            for k in (1, 5):
                self.log(f"val/{name}_recall@{k}", (rank < k).float().mean())

    def embed(self, image: Image, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors `[b p]` of pictures and of captions."""
        side = self.network.visual.image_size
        mean = torch.tensor(self.network.visual.image_mean, device=image.device)[:, None, None]
        std = torch.tensor(self.network.visual.image_std, device=image.device)[:, None, None]
        if image.shape[-2:] != tuple(side):
            image = F.interpolate(image, tuple(side), mode="bicubic", antialias=True)
        tokens = self.tokenizer(captions).to(image.device)
        pictures = self.network.encode_image(((image + 1) / 2 - mean) / std, normalize=True)
        return pictures.float(), self.network.encode_text(tokens, normalize=True).float()


def augment(image: Image, draws: Draws) -> Image:
    """Turned up to 9 degrees, scaled and moved up to 15 %, blurred, dimmed and noised; the
    surroundings are continued with the border's colour."""
    angle, zoom, x, y, soft, light, grain = draws.uniform((7,), "augment").T
    angle, zoom = 0.3 * (angle - 0.5), 1 + 0.3 * (zoom - 0.5)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    moves = torch.stack([cos, -sin, 0.3 * (x - 0.5), sin, cos, 0.3 * (y - 0.5)], 1).view(-1, 2, 3)
    grid = F.affine_grid(moves, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    small = F.interpolate(moved, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, moved.shape[-2:], mode="bilinear")
    moved = torch.lerp(moved, blurred, soft[:, None, None, None])
    dimmed = (moved + 1) * (1 + 0.2 * (light - 0.5))[:, None, None, None] - 1
    noise = draws.normal(image.shape[1:], "grain")
    return (dimmed + 0.12 * grain[:, None, None, None] * noise).clamp(-1, 1)
