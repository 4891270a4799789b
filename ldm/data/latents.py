"""Latent shards: posterior moments and text states in place of pictures and captions.

A record is one member `key.latent` of fixed size: mean and log-variance in half precision for each
view (the picture, and where asked for its mirror image), then token states, pooled state, mask.
Every tar begins with `_latents.json`: how records are packed and what they were made by; where
they hold text states, `_latents.latent` beside it is the record of the empty caption.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float16
from numpy.typing import NDArray
from torch import Tensor

from ldm.types import Condition, Posterior

_ZERO_VARIANCE = -100.0  # log-variances from here down stand for a standard deviation of 0


@dataclass(frozen=True)
class Layout:
    """The shape of one record; 0 tokens and 0 pooled where text is not stored."""

    channels: int
    height: int
    width: int
    views: int = 1
    tokens: int = 0
    token_width: int = 0
    pooled_width: int = 0

    @property
    def has_text(self) -> bool:
        """Whether a text encoder's states are stored, in place of the caption's use."""
        return self.tokens > 0 or self.pooled_width > 0

    @property
    def record(self) -> np.dtype[Any]:
        """The packed fields."""
        moments = (self.views, self.channels, self.height, self.width)
        return np.dtype(
            [
                ("mean", "<f2", moments),
                ("log_variance", "<f2", moments),
                ("tokens", "<f2", (self.tokens, self.token_width)),
                ("pooled", "<f2", (self.pooled_width,)),
                ("mask", "?", (self.tokens + self.tokens % 2,)),  # an even number of bytes
            ]
        )


class LatentBatch(TypedDict, total=False):
    """`tokens`, `mask` and `pooled` where the shards hold text states, else `caption`."""

    mean: Float16[Tensor, "b c h w"]
    log_variance: Float16[Tensor, "b c h w"]
    tokens: Float16[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    pooled: Float16[Tensor, "b p"]
    caption: list[str]
    key: list[str]


def posterior_of(batch: LatentBatch) -> Posterior:
    """The moments in float32, on the device where they are."""
    log_variance = batch["log_variance"].float()
    std = torch.exp(log_variance / 2).where(log_variance > _ZERO_VARIANCE, 0)
    return Posterior(batch["mean"].float(), std)


def condition_of(batch: LatentBatch) -> Condition | None:
    """The text states in float32; None where the shards hold captions instead."""
    if "tokens" not in batch:
        return None
    pooled = batch["pooled"].float() if "pooled" in batch else None
    return Condition(batch["tokens"].float(), batch["mask"], pooled)


def pack(
    layout: Layout, views: Sequence[Posterior], text: Condition | None, keys: Sequence[str]
) -> list[bytes]:
    """Records of a batch. Raises ValueError, with the key, for NaN, infinity, or a wrong shape."""
    records = np.zeros(len(keys), layout.record)
    for view, posterior in enumerate(views):
        log_variance = 2 * torch.log(posterior.std.float()).clamp(min=_ZERO_VARIANCE / 2)
        _fill(records["mean"][:, view], posterior.mean, "mean", keys)
        _fill(records["log_variance"][:, view], log_variance, "log-variance", keys)
    if len(views) != layout.views or (text is not None) != layout.has_text:
        raise ValueError(f"{len(views)} views and text {text is not None} do not fit {layout}")
    if text is not None:
        _fill(records["tokens"], text.tokens, "token states", keys)
        records["mask"][:, : layout.tokens] = text.mask.cpu().numpy()
        if text.pooled is not None:
            _fill(records["pooled"], text.pooled, "pooled state", keys)
    return [record.tobytes() for record in records]


def _fill(into: NDArray[np.float16], values: Tensor, name: str, keys: Sequence[str]) -> None:
    if tuple(values.shape) != into.shape:
        raise ValueError(
            f"the {name} of {keys[0]} … is shaped {list(values.shape)}, the latent shards are "
            f"laid out for {list(into.shape)}"
        )
    half = values.detach().to("cpu", torch.float16).numpy()
    bad = ~np.isfinite(half).reshape(len(half), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the {name} of {keys[int(bad.argmax())]} is not finite in half precision; look at "
            "its picture and at the first stage's training"
        )
    into[:] = half


def description(layout: Layout, made_by: Mapping[str, str]) -> bytes:
    """The contents of `_latents.json`."""
    return json.dumps({"layout": asdict(layout), "made_by": dict(made_by)}, sort_keys=True).encode()


def null_record(layout: Layout, null: Condition) -> bytes:
    """The contents of `_latents.latent`: no picture, and what is said of the empty caption."""
    nothing = torch.zeros(1, layout.channels, layout.height, layout.width)
    return pack(layout, [Posterior(nothing, nothing)] * layout.views, null, ["the empty caption"])[
        0
    ]
