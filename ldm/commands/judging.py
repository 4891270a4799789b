"""What evaluations share: folders of pictures, pictures drawn into them, and ranks."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image as Pictures
from torch import Tensor, distributed

from ldm import ranks
from ldm.commands.reconstruct import read_picture
from ldm.data import normalise
from ldm.data.text import caption_of, field_of, record_of
from ldm.files import read_text, write_text
from ldm.generate import save_png, to_picture
from ldm.metrics import MetricGroup

_T = TypeVar("_T")
_PATIENCE = timedelta(days=7)  # ranks draw for as long as it takes
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# The draft of a drawing that was killed, and what `ldm sample` writes beside its pictures.
_NO_SAMPLE = re.compile(r"\.|grid(-\d+)?\.|\d+-trajectory\.")


@dataclass(frozen=True)
class PictureFolder:
    """Picture files in the order of their names, with their captions."""

    files: list[Path]
    captions: list[str]

    def batches(
        self, numbers: Sequence[int], batch_size: int, side: int | None = None
    ) -> Iterator[tuple[Tensor, list[str]]]:
        """Pictures `[b 3 H W]` in [-1, 1] and captions of the files with these numbers; with
        `side` they are cropped and resized as training does it."""
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            images = [self._read(self.files[number], side) for number in part]
            yield torch.cat(images), [self.captions[number] for number in part]

    def refuse_mixed_sizes(self) -> None:
        """ValueError names two files of different sizes; only their heads are read."""
        first: tuple[Path, tuple[int, int]] | None = None
        for path in self.files:
            size = _size(path)
            first = first or (path, size)
            if size != first[1]:
                raise ValueError(
                    f"{first[0]} has {first[1][0]}x{first[1][1]} pixels and {path.name} "
                    f"{size[0]}x{size[1]}: bring all pictures of a set to one size"
                )

    def _read(self, path: Path, side: int | None) -> Tensor:
        if side is not None:
            image: Tensor = read_picture(path, side)
            return image
        import numpy as np

        try:
            with Pictures.open(path) as picture:
                levels = torch.from_numpy(np.array(picture.convert("RGB")))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}): delete or replace it") from None
        return normalise(levels.permute(2, 0, 1)[None])


def _size(path: Path) -> tuple[int, int]:
    try:
        with Pictures.open(path) as picture:
            return picture.size
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete or replace it") from None


def open_folder(folder: Path) -> PictureFolder:
    """The pictures of a folder. A caption is the line of metadata.jsonl (file_name, text), a .txt
    of the same name, or the `prompt` that ldm writes into its PNGs; else it is empty."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    files = [path for path in files if not _NO_SAMPLE.match(path.name)]
    if not files:
        tars = f", of shards name the files, such as '{folder}/val-*.tar'"
        raise ValueError(
            f"{folder} holds no pictures ({', '.join(_SUFFIXES)}): name another"
            f"{tars if any(folder.glob('*.tar')) else ''}"
        )
    listed = _listed(folder / "metadata.jsonl")
    return PictureFolder(files, [_caption(path, listed) for path in files])


def _listed(file: Path) -> dict[str, str]:
    """Captions by the names of their pictures; ValueError names the line that says neither."""
    found: dict[str, str] = {}
    if not file.is_file():
        return found
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = record_of(line)
            text = field_of(record, "text") or field_of(record, "caption")
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        found[str(record.get("file_name"))] = text
    return found


def _caption(path: Path, listed: Mapping[str, str]) -> str:
    if path.name in listed:
        return listed[path.name]
    beside = path.with_suffix(".txt")
    if beside.is_file():
        try:
            return caption_of(beside.read_bytes())
        except ValueError as error:
            raise ValueError(f"{beside}: {error}; save it as UTF-8") from None
    if path.suffix.lower() != ".png":
        return ""
    try:
        with Pictures.open(path) as picture:
            return str(picture.info.get("prompt", ""))
    except OSError:  # it is named when its pixels are read
        return ""


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun or Slurm started."""

    rank: int
    world: int

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            distributed.barrier()

    def first(self, value: _T) -> _T:
        """What rank 0 has."""
        values = [value]
        if self.world > 1:
            distributed.broadcast_object_list(values)
        return values[0]


def join_ranks() -> Ranks:
    """Meets the other ranks where torchrun started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not ranks.together():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(int(os.environ.get("RANK", "0")) if world > 1 else 0, world)


def draw_missing(
    generate: Callable[[Sequence[str], Sequence[int]], Tensor],
    prompts: Sequence[str],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    seed: int,
    batch_size: int,
    ranks: Ranks,
) -> None:
    """One PNG a prompt, those that are there already left as they are; ranks share the rest.

    ValueError where the folder holds pictures of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({**settings, "prompts": list(prompts), "seed": seed}, indent=1)
    record = folder / "settings.json"
    if record.is_file() and read_text(record) != wanted:
        raise ValueError(
            f"{folder} holds pictures of other settings (see {record.name}): delete it, or name "
            "another folder with --out"
        )
    ranks.wait()
    if ranks.rank == 0:
        write_text(record, wanted)
    missing = ranks.first(
        [n for n in range(len(prompts)) if not (folder / f"{n:06d}.png").is_file()]
    )
    mine = missing[ranks.rank :: ranks.world]
    began, drawn = time.perf_counter(), 0
    for start in range(0, len(mine), batch_size):
        part = mine[start : start + batch_size]
        images = generate([prompts[n] for n in part], [seed + n for n in part])
        for number, image in zip(part, images, strict=True):
            texts = {"prompt": prompts[number], "seed": seed + number}
            save_png(to_picture(image), folder / f"{number:06d}.png", texts)
        drawn += len(part)
    if drawn:
        spent = {"pictures": drawn, "seconds": time.perf_counter() - began}
        with (folder / f"seconds-{ranks.rank}.jsonl").open("a") as file:
            file.write(json.dumps(spent) + "\n")
    ranks.wait()


def seconds_a_picture(folder: Path) -> float | None:
    """What drawing took one rank for one picture, from the folder's records."""
    lines = [
        json.loads(line)
        for path in folder.glob("seconds-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    pictures = sum(line["pictures"] for line in lines)
    return sum(line["seconds"] for line in lines) / pictures if pictures else None


def ready(metrics: MetricGroup, device: torch.device) -> MetricGroup:
    """The same, its metrics made; ValueError where one cannot be."""
    metrics.reset(device)
    for name, told in metrics.failures.items():
        raise ValueError(f"{name}: {told}")
    return metrics


def judge(
    pictures: PictureFolder,
    metrics: MetricGroup,
    *,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, float | str]:
    """Each metric's value over all ranks, or in words why it could not be measured."""
    metrics.reset(device)
    mine = range(ranks.rank, len(pictures.files), ranks.world)
    for images, captions in pictures.batches(mine, batch_size):
        metrics.update(images.to(device), captions)
    return metrics.compute()
