"""Latents out of the shards that `ldm encode` wrote: read as they are packed, several at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.errors import DataError, Fault
from ldm.data.keep import Keep
from ldm.data.latents import LatentBatch, Layout, condition_of
from ldm.data.numbered import Numbered
from ldm.data.order import Indices, Rows
from ldm.data.random import FLIP, REPLACE, scattered, uniforms
from ldm.data.reading import Reading
from ldm.data.shard_set import Lines, ShardSet
from ldm.data.slots import NEAR, Slots
from ldm.data.text import caption_of
from ldm.types import Condition

_REPLACEMENTS = 8


class LatentData(Numbered):
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
        reading = reading or Reading()
        super().__init__(ShardSet(shards, Keep(missing_caption="empty"), reading), reading)
        self.flip = flip
        headers = [index.header.latents for index in self.set.indexes]
        names = [source.name for source in self.set.sources]
        for path, header in zip(names, headers, strict=True):
            if header is None:
                raise ValueError(f"{path} holds no latents; make them with `ldm encode`")
            refuse_stale(path, header["made_by"], expect or {})
            if header != headers[0]:
                raise ValueError(f"{path} was made otherwise than {names[0]}; encode anew")
        first = headers[0] or {}
        self.made_by: dict[str, str] = first["made_by"]
        self.layout = Layout(**first["layout"])
        self._null_offset: int | None = first.get("null")
        if self.layout.has_text and self._null_offset is None:
            raise ValueError(f"{names[0]} lacks the empty caption's text states; encode anew")
        if flip and self.layout.views < 2:
            raise ValueError(
                f"{names[0]} has no mirror images; encode them too (`ldm encode --flip`), or take "
                "out flip"
            )

    def null_text(self) -> Condition | None:
        """What the text encoder says of the empty caption, one row; None where it is not stored."""
        if self._null_offset is None:
            return None
        slots = Slots(self.layout, 1)
        size = self.layout.record.itemsize
        self.set.files.read_into(0, [(self._null_offset, size, slots.buffers[0][0])])
        return condition_of(slots.batch())

    def read(self, rows: Rows) -> tuple[LatentBatch, list[Fault]]:
        """The rows' latents; a sample that is not finite is replaced as pictures are."""
        slots = Slots(self.layout, len(rows.samples))
        keys, captions = [""] * len(rows.samples), [""] * len(rows.samples)
        views = self._views(rows)
        samples, todo = rows.samples.copy(), np.arange(len(rows.samples))
        faults: list[Fault] = []
        for attempt in range(_REPLACEMENTS):
            lines = self.set.lines(samples[todo])
            whole = lines.records["size"] == self.layout.record.itemsize
            said = self._fill(slots, lines, todo, views, whole)
            for row, key, text in zip(todo.tolist(), self.set.keys(lines), said, strict=True):
                keys[row], captions[row] = key, text
                if not text and not self.layout.has_text:  # as in shards of others
                    captions[row] = self.set.caption(self.set.place(int(samples[row])))
            bad = todo[~(whole & slots.finite(todo))]
            if not len(bad):
                batch = slots.batch() | {"key": keys}
                return batch if self.layout.has_text else batch | {"caption": captions}, faults
            faults += [self._fault(sample) for sample in samples[bad].tolist()]
            bits = scattered(rows.seed, REPLACE, attempt, counters=rows.positions[bad])
            samples[bad] = (bits % np.uint64(len(self))).astype(np.int64)
            todo = bad
        raise DataError(f"{_REPLACEMENTS} samples in a row are unreadable | the last: {faults[-1]}")

    def _views(self, rows: Rows) -> list[int]:
        """0 for the picture, 1 for its mirror image."""
        if not self.flip:
            return [0] * len(rows.samples)
        return (uniforms(rows.seed, FLIP, counters=rows.positions) < 0.5).astype(int).tolist()

    def _fill(
        self,
        slots: Slots,
        lines: Lines,
        todo: Indices,
        views: Sequence[int],
        whole: NDArray[np.bool_],
    ) -> list[str]:
        """Reads what is `whole` into its slots, in the order of the files; gives the captions."""
        found = [""] * len(todo)
        records, rows = lines.records, todo.tolist()
        starts, sizes = records["offset"].tolist(), records["caption_size"].tolist()
        gaps = self._gaps(records).tolist()
        texts = {}
        record = self.layout.record.itemsize
        for shard in np.unique(lines.shards).tolist():
            chosen = np.flatnonzero(whole & (lines.shards == shard))
            reads = []
            for place in chosen[np.argsort(records["offset"][chosen])].tolist():
                row, gap, size = rows[place], gaps[place], sizes[place]
                buffers = slots.buffers[views[row]][row]
                if gap < 0:
                    reads.append((starts[place], record, buffers))
                    continue
                text = texts[place] = bytearray(size)
                buffers = (*buffers, slots.nowhere[:gap], text)
                reads.append((starts[place], record + gap + size, buffers))
            self.set.files.read_into(shard, reads)
        lengths = records["caption_length"].tolist()
        for place, text in texts.items():
            try:
                found[place] = caption_of(text)
            except ValueError:  # it was readable when it was indexed
                whole[place] = False
            if found[place] and len(found[place]) != lengths[place]:
                whole[place] = False
        return found

    def _gaps(self, records: NDArray[Any]) -> Indices:
        """Bytes between a record and its caption; -1 where that is not to be read with it."""
        ends = records["offset"].astype(np.int64) + records["size"]
        gaps = records["caption_offset"].astype(np.int64) - ends
        gaps[(gaps < 0) | (gaps > NEAR) | self.layout.has_text] = -1
        return gaps

    def _fault(self, sample: int) -> Fault:
        place = self.set.place(sample)
        path = self.set.sources[place.shard].name
        size = self.set.record(place).size
        reason = "not finite"
        if size != self.layout.record.itemsize:
            reason = f"{size} bytes, a record has {self.layout.record.itemsize}"
        return Fault("unreadable latents", path, self.set.key(place), reason)


def refuse_stale(path: str, made_by: Mapping[str, str], expect: Mapping[str, str]) -> None:
    """ValueError where something else made the latents."""
    for name, wanted in expect.items():
        if made_by.get(name) != wanted:
            raise ValueError(
                f"{path} was encoded with {name} {made_by.get(name)}, this run uses {wanted}; run "
                "`ldm encode` again, or choose the one that made it"
            )
