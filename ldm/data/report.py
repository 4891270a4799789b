"""What a set of shards holds: counts, sizes, captions, and a sheet of random samples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from ldm.data.index import ShardIndex
from ldm.data.order import Rows
from ldm.data.random import permutation
from ldm.data.shards import ShardData

_ASPECTS = (0.5, 0.67, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0)


def describe(indexes: Sequence[ShardIndex]) -> list[str]:
    """Lines that say what the shards hold."""
    headers = [index.header for index in indexes]
    fields = ("width", "height", "caption_length", "size")
    width, height, caption, size = (
        np.concatenate([index.records[name] for index in indexes]).astype(np.int64)
        for name in fields
    )
    lines = [
        f"{len(width):,} samples in {len(indexes)} shards, "
        f"{sum(header.bytes for header in headers) / 1e6:,.1f} MB"
    ]
    left_out = _summed([header.left_out for header in headers])
    if left_out:
        lines.append(f"left out   {_listed(left_out)}")
    if mended := sum(header.mended for header in headers):
        lines.append(
            f"mended     {mended:,} captions hold U+FFFD in place of unreadable characters"
        )
    if not len(width):
        return lines
    return [
        *lines,
        f"width      {_spread(width)}",
        f"height     {_spread(height)}",
        f"bytes      {_spread(size)}",
        f"caption    {_spread(caption)} characters, {int((caption == 0).sum()):,} empty",
        f"mode       {_listed(_summed([header.modes for header in headers]))}",
        "aspect     " + _histogram(width / np.maximum(height, 1)),
    ]


def _summed(counts: Sequence[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}"


def _histogram(aspects: np.ndarray) -> str:
    counts = np.bincount(np.searchsorted(_ASPECTS, aspects), minlength=len(_ASPECTS) + 1)
    edges = ["", *(f"{edge:g}" for edge in _ASPECTS), ""]
    parts = []
    for number, count in enumerate(counts.tolist()):
        if count:
            low, high = edges[number], edges[number + 1]
            name = f"{low}-{high}" if low and high else f"<{high}" if high else f">{low}"
            parts.append(f"{name}: {count:,}")
    return "  ".join(parts)


@dataclass(frozen=True)
class Sheet:
    """`rows` × `columns` random samples with their captions below them."""

    rows: int = 4
    columns: int = 6
    side: int = 128
    seed: int = 0

    def save(self, data: ShardData, path: Path) -> None:
        """Writes a PNG."""
        count = min(self.rows * self.columns, len(data))
        samples = permutation(self.seed, length=len(data))[:count]
        batch, _ = data.read(Rows(samples, samples, self.seed))
        text = 28
        columns = min(self.columns, count)
        size = (columns * self.side, -(-count // columns) * (self.side + text))
        sheet = Picture.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        for number, (image, caption) in enumerate(
            zip(batch["image"], batch["caption"], strict=True)
        ):
            left = number % columns * self.side
            top = number // columns * (self.side + text)
            picture = Picture.fromarray(image.permute(1, 2, 0).numpy())
            sheet.paste(picture.resize((self.side, self.side)), (left, top))
            wide = self.side // 6 - 1
            lines = f"{caption[:wide]}\n{caption[wide : 2 * wide]}"
            draw.text((left + 2, top + self.side), lines, fill="black")
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
