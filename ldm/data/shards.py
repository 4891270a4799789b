"""Pictures with captions in tar shards: what a training or validation set is made of."""

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.data.decode import Crop, Decoder, Window, colour_of
from ldm.data.errors import DataError, Fault
from ldm.data.keep import Keep
from ldm.data.numbered import Numbered
from ldm.data.order import Rows
from ldm.data.random import CAPTION, FLIP, LEFT, REPLACE, TOP, scattered, uniforms
from ldm.data.reading import Reading
from ldm.data.shard_set import Place, ShardSet
from ldm.data.text import field_of

_REPLACEMENTS = 8
_LOOKED_AT = 100  # samples, for the names of their captions


class PictureBatch(TypedDict):
    """What a worker sends: `image` is uint8, shaped `[b 3 H W]` and stored channels last.

    `original` is each stored picture's (height, width), `corner` the (top, left) of what was cut
    out of the scaled picture: int32 `[b 2]`, SDXL's conditioning.
    """

    image: Tensor
    caption: list[str]
    key: list[str]
    original: Tensor
    corner: Tensor


class _Sample(NamedTuple):
    window: Window
    caption: str
    key: str


def _draws(rows: Rows) -> NDArray[np.float64]:
    """Numbers in [0, 1) `[b 4]`: for the flip, the crop's top and left, and the caption."""
    streams = (FLIP, TOP, LEFT, CAPTION)
    columns = [uniforms(rows.seed, stream, counters=rows.positions) for stream in streams]
    return np.stack(columns, axis=1)


class ShardData(Numbered):
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
            raise ValueError(f"size is {size}; set the pictures' side in pixels")
        if crop not in ("centre", "random"):
            raise ValueError(f"crop is {crop!r}; set centre or random")
        self.size = size
        self.flip = flip
        self.crop = crop
        self.keep = keep or Keep()
        self.decoder = Decoder(colour_of(background), self.keep.max_pixels)
        reading = reading or Reading()
        super().__init__(ShardSet(shards, self.keep, reading), reading)
        self._fields = list(captions or {})
        weights = np.array(list((captions or {}).values()), np.float64)
        if captions is not None and not (np.all(weights >= 0) and weights.sum() > 0):
            raise ValueError(f"captions are {dict(captions)}; set weights of at least 0")
        self._refuse_unknown_captions()
        self._shares = np.cumsum(weights) / max(weights.sum(), 1e-300)

    def _refuse_unknown_captions(self) -> None:
        """ValueError for a field that none of the first samples has: most likely it is misspelt."""
        wanted = {field for field in self._fields if field != "txt"}
        if not wanted or not self.set.sources[self.set.place(0).shard].is_here():
            return
        there: set[str] = set()
        for sample in range(min(len(self), _LOOKED_AT)):
            with suppress(ValueError):  # such a sample is told when it is read
                there |= self.set.fields(self.set.place(sample)).keys()
        for field in sorted(wanted - there):
            raise ValueError(
                f"captions names {field!r}, and the first samples' JSON holds "
                f"{', '.join(sorted(there)) or 'nothing'}; name one of those, or txt"
            )

    @property
    def transforms(self) -> str:
        """What is done to a picture, flips aside."""
        red, green, blue = self.decoder.background
        return f"{self.size} pixels, {self.crop} crop, on #{red:02x}{green:02x}{blue:02x}"

    def read(self, rows: Rows) -> tuple[PictureBatch, list[Fault]]:
        """The rows' pictures; where one cannot be read, another that its position determines."""
        shape = rows.shape or (self.size, self.size)
        pixels = torch.empty(len(rows.samples), *shape, 3, dtype=torch.uint8)
        faults: list[Fault] = []
        samples: list[_Sample] = []
        draws = _draws(rows)
        for row in range(len(rows.samples)):
            pixels[row], sample = self._readable(rows, row, shape, draws[row], faults)
            samples.append(sample)
        batch: PictureBatch = {
            "image": pixels.permute(0, 3, 1, 2),
            "caption": [sample.caption for sample in samples],
            "key": [sample.key for sample in samples],
            "original": torch.tensor([s.window.original for s in samples], dtype=torch.int32),
            "corner": torch.tensor([s.window.corner for s in samples], dtype=torch.int32),
        }
        return batch, faults

    def _readable(
        self,
        rows: Rows,
        row: int,
        shape: tuple[int, int],
        draws: NDArray[np.float64],
        faults: list[Fault],
    ) -> tuple[Tensor, "_Sample"]:
        """Sample `row`, or the first readable one of those that its position determines."""
        position = rows.positions[row : row + 1]
        sample = int(rows.samples[row])
        for attempt in range(_REPLACEMENTS):
            place = self.set.place(sample)
            try:
                pixels, window = self._picture(place, shape, draws)
                return pixels, _Sample(window, self._caption(place, draws[3]), self.set.key(place))
            except DataError:
                raise
            except Exception as error:  # what a broken file makes a codec raise is open
                faults.append(self._fault(place, error))
            bits = scattered(rows.seed, REPLACE, attempt, counters=position)
            sample = int(bits[0] % np.uint64(len(self)))
        raise DataError(f"{_REPLACEMENTS} samples in a row are unreadable | the last: {faults[-1]}")

    def _picture(
        self, place: Place, shape: tuple[int, int], draws: NDArray[np.float64]
    ) -> tuple[Tensor, Window]:
        record = self.set.record(place)
        raw = self.set.files.read(place.shard, record.offset, record.size)
        if zlib.crc32(raw) != record.crc:
            raise ValueError("the picture's bytes differ from the index's checksum")
        flip = self.flip and draws[0] < 0.5
        top, left = draws[1:3].tolist() if self.crop == "random" else (0.5, 0.5)
        if record.jpeg:
            stored = record.height, record.width
            pixels, window = self.decoder.jpeg(raw, stored, shape, (top, left))
        else:
            pixels, window = self.decoder(raw, shape, (top, left))
        image = torch.from_numpy(pixels)
        return (torch.flip(image, (1,)) if flip else image), window

    def _caption(self, place: Place, draw: float) -> str:
        if not self._fields:
            return self.set.caption(place)
        field = self._fields[int(np.searchsorted(self._shares, draw, side="right"))]
        text = "" if field == "txt" else field_of(self.set.fields(place), field)
        return text or self.set.caption(place)

    def _fault(self, place: Place, error: Exception) -> Fault:
        kind = "unreadable sample"
        shard = self.set.sources[place.shard].name
        return Fault(kind, shard, self.set.key(place), f"{type(error).__name__}: {error}")
