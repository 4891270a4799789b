"""What evaluations share: metrics by name, folders of pictures, and pictures drawn into them."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image as Pictures
from torch import Tensor, distributed

from ldm.commands.building import build
from ldm.commands.choices import choice
from ldm.commands.reconstruct import read_picture
from ldm.data import ShardData, normalise, validation_batches
from ldm.generate import save_png, to_picture
from ldm.metrics import Reference, SampleMetric, load_reference, reference_statistics

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class References:
    """The reference of each (features, split), computed from the run's data or read from a file,
    and remembered."""

    def __init__(self, data: Mapping[str, ShardData], name: str | None, device: torch.device):
        self.data, self.name, self.device = data, name, device
        self._made: dict[tuple[str, str], Reference] = {}

    def of(self, features: Any, split: str) -> Reference:
        """ValueError where there is nothing to compare with."""
        if self.name is not None:
            return load_reference(self.name)
        if split not in self.data:
            raise ValueError(
                f"there is no {split} data to compare with: make statistics with `ldm stats make` "
                "and name them with --reference, or leave out the metrics that compare"
            )
        key = (features.name, split)
        if key not in self._made:
            batches = validation_batches(self.data[split], batch=64, rank=0, world=1, workers=0)
            images = (normalise(batch["image"].to(self.device)) for batch in batches)
            self._made[key] = reference_statistics(features, images)
        return self._made[key]


def metrics_named(
    names: Sequence[str], references: References, clip: str | None
) -> dict[str, SampleMetric]:
    """Fresh metrics of the group `metrics`; `clip` is the folder of another CLIP."""
    found: dict[str, SampleMetric] = {}
    for name in names:
        node: Any = OmegaConf.to_container(choice("metrics", name), resolve=True)
        if clip is not None and node["features"]["_target_"].endswith("open_clip_features"):
            node["features"]["folder"] = clip
        features = build(node["features"], f"metrics.{name}.features")
        against = node["against"]
        given = [features] if against is None else [features, references.of(features, against)]
        for metric, call in node["metrics"].items():
            make = build({**call, "_partial_": True}, f"metrics.{name}.{metric}")
            found[metric] = make(*given)
    return found


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
        numbers = [number for number in numbers[: len(self.files)] if number < len(self.files)]
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            images = [self._read(self.files[number], side) for number in part]
            sizes = {tuple(image.shape[2:]) for image in images}
            if len(sizes) > 1:
                raise ValueError(
                    f"{self.files[0].parent} holds pictures of {' and '.join(map(str, sizes))}: "
                    "bring all pictures of a set to one size"
                )
            yield torch.cat(images), [self.captions[number] for number in part]

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


def open_folder(folder: Path) -> PictureFolder:
    """The pictures of a folder. A caption is the line of metadata.jsonl (file_name, text), a .txt
    of the same name, or the `prompt` that ldm writes into its PNGs; else it is empty."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    files = [path for path in files if path.stem != "grid"]
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(_SUFFIXES)}): name another")
    listed = {}
    if (folder / "metadata.jsonl").is_file():
        for line in (folder / "metadata.jsonl").read_text().splitlines():
            record = json.loads(line)
            listed[record["file_name"]] = record["text"]
    return PictureFolder(files, [_caption(path, listed) for path in files])


def _caption(path: Path, listed: Mapping[str, str]) -> str:
    if path.name in listed:
        return listed[path.name]
    if path.with_suffix(".txt").is_file():
        return path.with_suffix(".txt").read_text().strip()
    if path.suffix.lower() != ".png":
        return ""
    with Pictures.open(path) as picture:
        return str(picture.info.get("prompt", ""))


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun or Slurm started."""

    rank: int
    world: int

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            distributed.barrier()


def join_ranks() -> Ranks:
    """Meets the other ranks where torchrun started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
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
    if record.is_file() and record.read_text() != wanted:
        raise ValueError(
            f"{folder} holds pictures of other settings (see {record.name}): delete it, or name "
            "another folder with --out"
        )
    ranks.wait()
    if ranks.rank == 0:
        record.write_text(wanted)
    missing = [n for n in range(len(prompts)) if not (folder / f"{n:06d}.png").is_file()]
    mine = missing[ranks.rank :: ranks.world]
    began, drawn = time.perf_counter(), 0
    for start in range(0, len(mine), batch_size):
        part = mine[start : start + batch_size]
        images = generate([prompts[n] for n in part], [seed + n for n in part])
        for number, image in zip(part, images, strict=True):
            draft = folder / f".{number:06d}-{os.getpid()}"
            texts = {"prompt": prompts[number], "seed": seed + number}
            save_png(to_picture(image), draft.with_suffix(".png"), texts)
            draft.with_suffix(".png").rename(folder / f"{number:06d}.png")
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


def judge(
    pictures: PictureFolder,
    metrics: Mapping[str, SampleMetric],
    *,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, float | str]:
    """Each metric's value over all ranks, or in words why it could not be measured."""
    for metric in metrics.values():
        metric.to(device).reset()
    mine = range(ranks.rank, len(pictures.files), ranks.world)
    for images, captions in pictures.batches(mine, batch_size):
        on_device = images.to(device)
        for metric in metrics.values():
            metric.update(on_device, captions)
    values: dict[str, float | str] = {}
    for name, metric in metrics.items():
        try:
            values[name] = float(metric.compute())
        except ValueError as error:
            values[name] = str(error)
    return values
