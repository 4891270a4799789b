"""Latent shards: posterior moments and text states in place of pictures and captions.

A record is one member `key.latent` of fixed size: mean and log-variance in half precision for each
view (the picture, and where asked for its mirror image), then token states, pooled state, mask.
Every tar begins with `_latents.json`: how records are packed and what they were made by.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float16
from numpy.typing import NDArray
from torch import Tensor

from ldm.data.errors import DataError, Fault
from ldm.data.keep import Keep
from ldm.data.order import Indices, Order, Rows, ShuffledOrder
from ldm.data.random import FLIP, REPLACE, scattered, uniforms
from ldm.data.reading import Reading
from ldm.data.shard_set import ShardSet
from ldm.types import Condition, Posterior

_ZERO_VARIANCE = -100.0  # log-variances from here down stand for a standard deviation of 0
_REPLACEMENTS = 8


@dataclass(frozen=True)
class Layout:
    """The shape of one record; 0 tokens or 0 pooled where text is not stored."""

    channels: int
    height: int
    width: int
    views: int = 1
    tokens: int = 0
    token_width: int = 0
    pooled_width: int = 0

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
    if len(views) != layout.views or (text is not None) != (layout.tokens > 0):
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


class LatentData:
    """Latents (and text states) out of the shards that `ldm encode` wrote.

    `expect` are fingerprints that must equal those that the latents were made by, such as
    {"first_stage": …, "text": …}: latents of another network are refused. `flip` draws the mirror
    image's latents for half of the samples.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        *,
        expect: Mapping[str, str] | None = None,
        flip: bool = False,
        reading: Reading | None = None,
    ) -> None:
        self.reading = reading or Reading()
        self.set = ShardSet(shards, Keep(missing_caption="empty"), self.reading)
        self.flip = flip
        headers = [index.header.latents for index in self.set.indexes]
        names = [source.name for source in self.set.sources]
        for path, header in zip(names, headers, strict=True):
            if header is None:
                raise ValueError(f"{path} holds no latents; make them with `ldm encode`")
            _refuse_stale(path, header["made_by"], expect or {})
            if header != headers[0]:
                raise ValueError(f"{path} was made otherwise than {names[0]}; encode anew")
        first = headers[0] or {}
        self.made_by: dict[str, str] = first["made_by"]
        self.layout = Layout(**first["layout"])
        if flip and self.layout.views < 2:
            raise ValueError(
                f"{names[0]} has no mirror images; encode them too, or set data.flip=false"
            )

    def __len__(self) -> int:
        return len(self.set)

    @property
    def content_hash(self) -> str:
        """Changes with any byte of any shard."""
        return self.set.content_hash

    def captions(self) -> Iterator[str]:
        """Every sample's caption, in order."""
        return self.set.captions()

    def order(self, seed: int, global_batch: int) -> Order:
        """The training order; equal to that of pictures in shards of the same sizes."""
        return ShuffledOrder(self.set.sizes, seed, self.reading.window)

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""
        return self.set.where(rows.samples)

    def read(self, rows: Rows) -> tuple[LatentBatch, list[Fault]]:
        """The rows' latents; a sample that is not finite is replaced as pictures are."""
        records = np.empty(len(rows.samples), self.layout.record)
        samples = rows.samples.copy()
        faults: list[Fault] = []
        todo = np.arange(len(samples))
        for attempt in range(_REPLACEMENTS):
            self.set.read_into(records, samples, todo)
            bad = todo[~_finite(records[todo])]
            if not len(bad):
                return self._batch(records, samples, rows), faults
            faults += [self._fault(sample) for sample in samples[bad].tolist()]
            bits = scattered(rows.seed, REPLACE, attempt, counters=rows.positions[bad])
            samples[bad] = (bits % np.uint64(len(self))).astype(np.int64)
            todo = bad
        raise DataError(f"{_REPLACEMENTS} samples in a row are unreadable | the last: {faults[-1]}")

    def _batch(self, records: NDArray[Any], samples: Indices, rows: Rows) -> LatentBatch:
        view = np.zeros(len(samples), np.int64)
        if self.flip:
            view[uniforms(rows.seed, FLIP, counters=rows.positions) < 0.5] = 1
        every = np.arange(len(samples))
        batch: LatentBatch = {
            "mean": torch.from_numpy(records["mean"][every, view]),
            "log_variance": torch.from_numpy(records["log_variance"][every, view]),
            "key": self.set.keys(samples),
        }
        if not self.layout.tokens:
            batch["caption"] = [self.set.caption(self.set.place(s)) for s in samples.tolist()]
            return batch
        batch["tokens"] = torch.from_numpy(records["tokens"].copy())
        batch["mask"] = torch.from_numpy(records["mask"][:, : self.layout.tokens].copy())
        if self.layout.pooled_width:
            batch["pooled"] = torch.from_numpy(records["pooled"].copy())
        return batch

    def _fault(self, sample: int) -> Fault:
        place = self.set.place(sample)
        path = self.set.sources[place.shard].name
        return Fault("unreadable latents", path, self.set.key(place), "not finite")


def _finite(records: NDArray[Any]) -> NDArray[np.bool_]:
    """Which records' moments are finite: in half precision, all bits of the exponent set is not."""
    good = np.ones(len(records), bool)
    for name in ("mean", "log_variance"):
        bits = np.ascontiguousarray(records[name]).reshape(len(records), -1).view(np.uint16)
        good &= (bits & 0x7FFF).max(axis=1) < 0x7C00
    return good


def _refuse_stale(path: str, made_by: Mapping[str, str], expect: Mapping[str, str]) -> None:
    for name, wanted in expect.items():
        if made_by.get(name) != wanted:
            raise ValueError(
                f"{path} was encoded with {name} {made_by.get(name)}, this run uses {wanted}; run "
                "`ldm encode` again, or choose the one that made it"
            )


def description(layout: Layout, made_by: Mapping[str, str]) -> bytes:
    """The contents of `_latents.json`."""
    return json.dumps({"layout": asdict(layout), "made_by": dict(made_by)}, sort_keys=True).encode()
