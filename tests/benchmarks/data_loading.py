"""How fast samples come off shards, against webdataset (and litdata, where it is installed).

    OMP_NUM_THREADS=1 python tests/benchmarks/data_loading.py

Both sides run in one process on one thread, in rounds of shuffled order; what counts is processor
time. A line gives the median of the rounds' rates, and medians and ranges of the ratios within
rounds: over webdataset, and of what the decoder or the copying of the bytes alone would allow.
"""

import argparse
import dataclasses
import io
import itertools
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image as Picture
from skimage import data as photographs
from torchvision import transforms

from ldm.data import LatentData, ShardData, normalise, training_batches
from ldm.data.encoding import LatentFolder
from ldm.data.index import ShardIndex, build_index
from ldm.data.keep import Keep
from ldm.data.latents import Layout
from ldm.data.order import ShuffledOrder
from ldm.data.reading import Reading
from ldm.data.shard_set import ShardSet
from ldm.types import Posterior

Rate = Callable[[], float]
LIMIT = "the limit"  # what the decoder, or the copying of the bytes alone, would allow


def rate_of(iterate: Callable[[], int]) -> float:
    """Samples a second of processor time."""
    start = time.process_time()
    count = iterate()
    return count / (time.process_time() - start)


def jpegs(shape: tuple[int, int], count: int) -> list[bytes]:
    """Crops of scikit-image's photographs, quality 90; crops of less than `shape` are enlarged."""
    rng = np.random.default_rng(0)
    photos = [photographs.astronaut(), photographs.coffee(), photographs.chelsea()]
    found = []
    for number in range(count):
        photo = Picture.fromarray(photos[number % 3])
        height, width = min(shape[0], photo.height), min(shape[1], photo.width)
        left = int(rng.integers(0, photo.width - width + 1))
        top = int(rng.integers(0, photo.height - height + 1))
        crop = photo.crop((left, top, left + width, top + height)).resize(shape[::-1])
        file = io.BytesIO()
        crop.save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def write(path: Path, samples: list[dict[str, bytes]]) -> str:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"{number:06d}", **sample})
    return str(path)


def peer_pictures(path: str, size: int, batch: int) -> int:
    transform = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    data = webdataset.WebDataset(path, shardshuffle=False).shuffle(1000).decode("pil")
    data = data.to_tuple("jpg", "txt").map_tuple(transform, str).batched(batch)
    return sum(len(images) for images, _ in data)


def our_pictures(
    data: ShardData, batch: int, finish: Callable[[torch.Tensor], torch.Tensor]
) -> int:
    count = len(data) // batch
    batches = training_batches(
        data, global_batch=batch, rank=0, world=1, start=0, seed=0, workers=0
    )
    return sum(
        len(b["key"]) for b in itertools.islice(batches, count) if finish(b["image"]) is not b
    )


def pictures(folder: Path, shape: tuple[int, int], count: int) -> dict[str, Rate]:
    raw = jpegs(shape, count)
    path = write(folder / f"{shape[0]}.tar", [{"jpg": one, "txt": b"a caption"} for one in raw])
    data = ShardData(path, 256, flip=True)
    factor = max(1, min(shape) // 256)
    size = {"min_height": shape[0] // factor, "min_width": shape[1] // factor}
    return {
        "webdataset": lambda: rate_of(lambda: peer_pictures(path, 256, 64)),
        "ours": lambda: rate_of(lambda: our_pictures(data, 64, torch.Tensor.detach)),
        "ours, normalised too": lambda: rate_of(lambda: our_pictures(data, 64, normalise)),
        LIMIT: lambda: rate_of(
            lambda: len([simplejpeg.decode_jpeg(one, "RGB", **size) for one in raw])
        ),
    }


def latents(folder: Path, count: int) -> dict[str, Rate]:
    layout = Layout(4, 32, 32)
    means = torch.randn(count, 4, 32, 32)
    target = LatentFolder(folder / "latents", "train", layout, {})
    keys = [f"{number:06d}" for number in range(count)]
    with target.shard(target.folder / "train-00000.tar") as shard:
        shard.add(keys, ["a caption"] * count, [Posterior(means, torch.ones_like(means))])
    samples = []
    for mean in means.half().numpy():
        file = io.BytesIO()
        np.save(file, mean)
        samples.append({"npy": file.getvalue(), "txt": b"a caption"})
    path = write(folder / "npy.tar", samples)
    data = LatentData(str(target.folder / "train-*.tar"))

    def peer() -> int:
        found = webdataset.WebDataset(path, shardshuffle=False).shuffle(1000).decode()
        return sum(len(array) for array, _ in found.to_tuple("npy", "txt").batched(128))

    def ours() -> int:
        batches = training_batches(
            data, global_batch=128, rank=0, world=1, start=0, seed=0, workers=0
        )
        return sum(len(b["key"]) for b in itertools.islice(batches, count // 128))

    items = [{"latent": mean, "txt": "a caption"} for mean in means.half().numpy()]
    return {
        "webdataset": lambda: rate_of(peer),
        "ours": lambda: rate_of(ours),
        **litdata_side(folder / "litdata-latents", items, stack=True),
        LIMIT: lambda: rate_of(lambda: bytes_alone(data.set)),
    }


def bytes_alone(data: ShardSet) -> int:
    """Every record's bytes, in the order of training, by one call of the system each."""
    lines = data.lines(ShuffledOrder(data.sizes, 0, 10_000).rows(0, len(data)).samples)
    places = zip(lines.records["offset"].tolist(), lines.records["size"].tolist(), strict=True)
    into = memoryview(bytearray(int(lines.records["size"].max())))
    with data.sources[0].local().open("rb") as file:
        return sum(
            os.preadv(file.fileno(), [into[:size]], offset) == size for offset, size in places
        )


def litdata_side(folder: Path, items: list[dict[str, Any]], *, stack: bool) -> dict[str, Rate]:
    """litdata on the same samples; nothing where it is not installed."""
    try:
        from litdata import StreamingDataset  # no dependency of ours
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        return {}
    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, item in enumerate(items):
        writer.add_item(number, item)
    writer.done()
    writer.merge()

    def read() -> int:
        count = 0
        batch = []
        for item in StreamingDataset(str(folder), shuffle=True, seed=0):
            batch.append(item)
            count += 1
            if stack and len(batch) == 128:
                torch.stack([torch.from_numpy(one["latent"]) for one in batch])
                batch = []
        return count

    return {"litdata": lambda: rate_of(read)}


def raw_samples(folder: Path, count: int) -> dict[str, Rate]:
    path = write(folder / "raw.tar", [{"bin": bytes(1000), "txt": b"a caption"}] * count)
    named = write(folder / "named.tar", [{"latent": bytes(1000), "txt": b"a caption"}] * count)
    data = ShardSet(named, Keep(), Reading())
    order = ShuffledOrder(data.sizes, 0, 10_000)

    def peer() -> int:
        return sum(1 for _ in webdataset.WebDataset(path, shardshuffle=False).shuffle(1000))

    def ours() -> int:
        """Bytes, caption and key of every sample, in the order of training."""
        count = 0
        for sample in order.rows(0, len(data)).samples.tolist():
            place = data.place(sample)
            record = data.record(place)
            data.files.read(place.shard, record.offset, record.size)
            data.caption(place)
            data.key(place)
            count += 1
        return count

    items = [{"bin": bytes(1000), "txt": "a caption"}] * count
    return {
        "webdataset": lambda: rate_of(peer),
        "ours": lambda: rate_of(ours),
        **litdata_side(folder / "litdata-raw", items, stack=False),
        LIMIT: lambda: rate_of(lambda: bytes_alone(data)),
    }


def compare(name: str, sides: dict[str, Rate], rounds: int) -> None:
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in random.Random(number).sample(list(sides), len(sides)):
            rate = sides[side]()
            if number:  # the first round warms up
                rates[side].append(rate)
    for side, found in rates.items():
        over, of = (spread_of(found, rates[other]) for other in ("webdataset", LIMIT))
        print(f"| {name} | {side} | {statistics.median(found):,.0f} | {over} | {of} |", flush=True)


def spread_of(found: list[float], others: list[float]) -> str:
    ratios = [one / other for one, other in zip(found, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def resume(folder: Path, rounds: int, skipped: int = 20_000) -> None:
    """Seconds from nothing to the first batch at a random position of a million samples.

    webdataset gets there by reading what lies before. It is timed over `skipped` samples, and its
    time to the position is taken to be in proportion. Our indexes are real; the shards repeat one
    small picture.
    """
    raw = jpegs((16, 16), 1)[0]
    for number in range(100):
        path = Path(write(folder / f"{number:05d}.tar", [{"jpg": raw, "txt": b"a caption"}]))
        one = build_index(path)
        header = dataclasses.replace(one.header, samples=10_000)
        index = ShardIndex(header, np.repeat(one.records, 10_000), one.keys)
        index.write(path.with_name(path.name + ".index"))
    shards = str(folder / "*.tar")
    skip = write(folder / "skip", [{"jpg": raw, "txt": b"a caption"}] * skipped)

    def ours(position: int) -> int:
        batches = training_batches(
            ShardData(shards, 16),
            global_batch=64,
            rank=0,
            world=1,
            start=position // 64 * 64,
            seed=0,
            workers=0,
        )
        return len(next(iter(batches))["key"])

    def peer() -> int:
        return sum(1 for _ in webdataset.WebDataset(skip, shardshuffle=False))

    seconds, ratios = [], []
    for number in range(rounds + 1):
        position = random.Random(number).randrange(1_000_000)
        start = time.process_time()
        ours(position)
        taken = time.process_time() - start
        theirs = position / rate_of(peer)
        if number:
            seconds.append((taken, theirs))
            ratios.append(theirs / taken)
            print(f"| resume at {position:,} | {taken:.3f} s | {theirs:.1f} s |", flush=True)
    one, other = (statistics.median(side) for side in zip(*seconds, strict=True))
    print(
        f"| resume, median | {one:.3f} s | {other:.1f} s | {statistics.median(ratios):.0f} "
        f"({min(ratios):.0f} to {max(ratios):.0f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "| case | side | samples/s a core | over webdataset | of the limit |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare("256² JPEG", pictures(folder, (256, 256), 256), options.rounds)
        compare("1024×768 JPEG to 256²", pictures(folder, (768, 1024), 64), options.rounds)
        compare("latents 4×32×32", latents(folder, 4096), options.rounds)
        compare("raw samples", raw_samples(folder, 8192), options.rounds)
        (folder / "million").mkdir()
        resume(folder / "million", options.rounds)


if __name__ == "__main__":
    main()
