"""The memory of a batch of latents, into which records are read field by field."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ldm.data.latents import LatentBatch, Layout
from ldm.data.order import Indices

NEAR = 4096  # bytes behind a record that may be read to nowhere, to reach its caption
_MOMENTS = ("mean", "log_variance")  # fields of which a record holds every view, a batch one


class Slots:
    """`count` rows. `buffers[view][row]` is where the bytes of a row's record go, one part behind
    the other, when that view is wanted; the others go to `nowhere`."""

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        self.count = count
        self.arrays: dict[str, NDArray[Any]] = {}
        for name in layout.record.names or ():
            field = layout.record[name]
            shape = field.shape[1:] if name in _MOMENTS else field.shape
            self.arrays[name] = np.empty((count, *shape), field.base)
        moments = layout.views * self.arrays["mean"].nbytes // count
        self.nowhere = memoryview(bytearray(max(moments, NEAR)))
        self.buffers = [self._of_view(view) for view in range(layout.views)]

    def _of_view(self, view: int) -> list[tuple[memoryview, ...]]:
        fields = []
        for name, array in self.arrays.items():
            size = array.nbytes // self.count
            if not size:
                continue
            flat = memoryview(array).cast("B")  # type: ignore[arg-type]  # arrays are buffers
            lines = [flat[row * size : row * size + size] for row in range(self.count)]
            before, after = 0, 0
            if name in _MOMENTS:
                before, after = view * size, (self.layout.views - 1 - view) * size
            fields += [[self.nowhere[:before]] * self.count] if before else []
            fields.append(lines)
            fields += [[self.nowhere[:after]] * self.count] if after else []
        return list(zip(*fields, strict=True))

    def finite(self, rows: Indices) -> NDArray[np.bool_]:
        """Which rows' numbers are finite: not all bits of a half-precision exponent are set."""
        good = np.ones(len(rows), bool)
        for array in self.arrays.values():
            if array.dtype.kind == "f" and array.size:
                chosen = array if len(rows) == len(array) else array[rows]
                bits = chosen.reshape(len(rows), -1).view(np.uint16)
                good &= (bits & 0x7FFF).max(axis=1) < 0x7C00
        return good

    def batch(self) -> LatentBatch:
        """The arrays as tensors, without a copy."""
        batch: LatentBatch = {
            "mean": torch.from_numpy(self.arrays["mean"]),
            "log_variance": torch.from_numpy(self.arrays["log_variance"]),
        }
        if self.layout.has_text:
            batch["tokens"] = torch.from_numpy(self.arrays["tokens"])
            batch["mask"] = torch.from_numpy(self.arrays["mask"])[:, : self.layout.tokens]
        if self.layout.pooled_width:
            batch["pooled"] = torch.from_numpy(self.arrays["pooled"])
        return batch
