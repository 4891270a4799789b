"""Writing latent shards: shared out over ranks, resumable, each file complete or absent."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import webdataset

from ldm.data.index import LATENTS, build_index, load_index
from ldm.data.latents import Layout, description, null_record, pack
from ldm.types import Condition, Posterior


@dataclass(frozen=True)
class LatentFolder:
    """Latents of one data set in `folder/<split>-00000.tar` …, one shard for each of its shards, so
    that the order of training stays the same.

    `made_by` are the fingerprints of what makes them: first stage, text encoder, transforms and
    source. `null` is what the text encoder says of the empty caption, where text is stored.
    """

    folder: Path
    split: str
    layout: Layout
    made_by: Mapping[str, str]
    null: Condition | None = None

    def __post_init__(self) -> None:
        if (self.null is not None) != self.layout.has_text:
            raise ValueError("text states go with those of the empty caption; give both or none")

    @property
    def recipe(self) -> str:
        """Tells shards of this making from others."""
        return hashlib.sha256(description(self.layout, self.made_by)).hexdigest()

    def pending(self, sizes: Sequence[int], rank: int, world: int) -> list[tuple[Path, range]]:
        """This rank's shards that are not written yet, with the samples that go into each.

        `sizes` are the samples in each shard of the source. Raises ValueError where the folder
        holds latents of another making; every rank looks at all of them.
        """
        found = []
        start = 0
        for number, size in enumerate(sizes):
            path = self.folder / f"{self.split}-{number:05d}.tar"
            if not self._finished(path) and size and number % world == rank:
                found.append((path, range(start, start + size)))
            start += size
        return found

    def _finished(self, path: Path) -> bool:
        where = path.with_name(path.name + ".index")
        if not (path.is_file() and where.is_file()):
            return False
        header = load_index(where).header
        if header.recipe != self.recipe:
            raise ValueError(
                f"{path} was made otherwise (another first stage, text encoder, source or "
                "setting); choose another folder or remove it"
            )
        return header.bytes == path.stat().st_size

    @contextmanager
    def shard(self, path: Path) -> Iterator["LatentWriter"]:
        """A shard that appears, with its index, when all was written without an error."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with webdataset.TarWriter(
                str(partial), encoder=False, mtime=0, user="ldm", group="ldm", mode=0o644
            ) as tar:
                first = {"__key__": LATENTS, "json": description(self.layout, self.made_by)}
                if self.null is not None:
                    first["latent"] = null_record(self.layout, self.null)
                tar.write(first)
                yield LatentWriter(self.layout, tar)
            build_index(partial, recipe=self.recipe).write(path.with_name(path.name + ".index"))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class LatentWriter:
    """Adds batches to a latent shard."""

    layout: Layout
    tar: webdataset.TarWriter

    def add(
        self,
        keys: Sequence[str],
        captions: Sequence[str],
        views: Sequence[Posterior],
        text: Condition | None = None,
    ) -> None:
        """A batch: one posterior a view, all views of the same pictures."""
        records = pack(self.layout, views, text, keys)
        for key, caption, record in zip(keys, captions, records, strict=True):
            self.tar.write({"__key__": key, "latent": record, "txt": caption.encode()})
