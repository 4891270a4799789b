"""Pictures with captions in tar shards: what a training or validation set is made of."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.data.decode import Crop, colour_of, cut_out, open_picture, to_rgb
from ldm.data.errors import DataError, Fault
from ldm.data.keep import Keep
from ldm.data.order import Order, Rows, ShuffledOrder
from ldm.data.random import scattered, uniforms
from ldm.data.reading import Reading
from ldm.data.shard_set import Place, ShardSet
from ldm.data.text import field_of

_REPLACEMENTS = 8
_FLIP, _TOP, _LEFT, _CAPTION, _REPLACE = range(5)  # streams of random numbers


class PictureBatch(TypedDict):
    """What a worker sends: `image` is uint8, shaped `[b 3 H W]` and stored channels last."""

    image: Tensor
    caption: list[str]
    key: list[str]


class ShardData:
    """Pictures of `size` pixels square, with captions, out of tar shards.

    `shards` is a path, or several, with braces, globs and `asset:` for what ldm ships. `captions`
    are weights by which one of several captions is drawn: "txt" for the .txt member, any other name
    for a field of the .json. Flips, crops and captions are drawn from (seed, position).
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        size: int,
        *,
        flip: bool = False,
        crop: Crop = "centre",
        background: str = "white",
        captions: Mapping[str, float] | None = None,
        keep: Keep | None = None,
        reading: Reading | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"data.size is {size}; set the pictures' side in pixels")
        if crop not in ("centre", "random"):
            raise ValueError(f"data.crop is {crop!r}; set centre or random")
        self.size = size
        self.flip = flip
        self.crop = crop
        self.background = colour_of(background)
        self.keep = keep or Keep()
        self.reading = reading or Reading()
        self.set = ShardSet(shards, self.keep, self.reading)
        self._fields = list(captions or {})
        weights = np.array(list((captions or {}).values()), np.float64)
        if captions is not None and not (np.all(weights >= 0) and weights.sum() > 0):
            raise ValueError(f"data.captions are {dict(captions)}; set weights of at least 0")
        self._shares = np.cumsum(weights) / max(weights.sum(), 1e-300)

    def __len__(self) -> int:
        return len(self.set)

    @property
    def content_hash(self) -> str:
        """Changes with any byte of any shard and with what is left out."""
        return self.set.content_hash

    def captions(self) -> Iterator[str]:
        """Every sample's default caption, in order, without decoding a picture."""
        return self.set.captions()

    def order(self, seed: int, global_batch: int) -> Order:
        """The training order; this one does not depend on the batch."""
        return ShuffledOrder(self.set.sizes, seed, self.reading.window)

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""
        shards = {self.set.place(sample).shard for sample in rows.samples.tolist()}
        return [str(self.set.paths[shard]) for shard in sorted(shards)]

    def read(self, rows: Rows) -> tuple[PictureBatch, list[Fault]]:
        """The rows' pictures; where one cannot be read, another that its position determines."""
        shape = rows.shape or (self.size, self.size)
        pixels = torch.empty(len(rows.samples), *shape, 3, dtype=torch.uint8)
        view = pixels.numpy()
        draws = np.stack(
            [
                uniforms(rows.seed, stream, counters=rows.positions)
                for stream in (_FLIP, _TOP, _LEFT, _CAPTION)
            ],
            axis=1,
        )
        faults: list[Fault] = []
        captions, keys = [], []
        for row, sample in enumerate(rows.samples.tolist()):
            position = rows.positions[row : row + 1]
            for attempt in range(_REPLACEMENTS):
                place = self.set.place(sample)
                try:
                    caption = self._caption(place, draws[row, 3])
                    view[row] = self._picture(place, shape, draws[row])
                    break
                except DataError:
                    raise
                except Exception as error:  # what a broken file makes a codec raise is open
                    faults.append(self._fault(place, error))
                sample = int(
                    scattered(rows.seed, _REPLACE, attempt, counters=position)[0] % len(self)
                )
            else:
                raise DataError(f"{_REPLACEMENTS} samples in a row are unreadable | {faults[-1]}")
            captions.append(caption)
            keys.append(self.set.key(place))
        image = pixels.permute(0, 3, 1, 2)
        return {"image": image, "caption": captions, "key": keys}, faults

    def _picture(
        self, place: Place, shape: tuple[int, int], draws: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        record = self.set.record(place)
        raw = self.set.read(place.shard, record.offset, record.size)
        if zlib.crc32(raw) != record.crc:
            raise ValueError("the picture's bytes differ from the index's checksum")
        picture = open_picture(raw, max_pixels=self.keep.max_pixels, at_least=max(shape))
        picture = to_rgb(picture, self.background)
        where = (draws[1], draws[2]) if self.crop == "random" else (0.5, 0.5)
        pixels = np.asarray(cut_out(picture, shape, where)[0])
        return pixels[:, ::-1] if self.flip and draws[0] < 0.5 else pixels

    def _caption(self, place: Place, draw: float) -> str:
        if not self._fields:
            return self.set.caption(place)
        field = self._fields[int(np.searchsorted(self._shares, draw, side="right"))]
        text = "" if field == "txt" else field_of(self.set.fields(place), field)
        return text or self.set.caption(place)

    def _fault(self, place: Place, error: Exception) -> Fault:
        kind = "unreadable sample"
        shard = str(self.set.paths[place.shard])
        return Fault(kind, shard, self.set.key(place), f"{type(error).__name__}: {error}")
