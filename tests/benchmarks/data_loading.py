"""How fast samples come off shards, against webdataset (and litdata, where it is installed).

    OMP_NUM_THREADS=1 python tests/benchmarks/data_loading.py

Both sides run in one process on one thread, in rounds of shuffled order; what counts is processor
time. A line gives the median of the rounds' rates and the median (and range) of their ratios.
"""

import argparse
import io
import itertools
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
from ldm.data.keep import Keep
from ldm.data.latents import Layout
from ldm.data.order import ShuffledOrder
from ldm.data.reading import Reading
from ldm.data.shard_set import ShardSet
from ldm.types import Posterior

Rate = Callable[[], float]


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
        "libjpeg-turbo alone": lambda: rate_of(
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

    sides = {"webdataset": lambda: rate_of(peer), "ours": lambda: rate_of(ours)}
    items = [{"latent": mean, "txt": "a caption"} for mean in means.half().numpy()]
    return sides | litdata_side(folder / "litdata-latents", items, stack=True)


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

    sides = {"webdataset": lambda: rate_of(peer), "ours": lambda: rate_of(ours)}
    items = [{"bin": bytes(1000), "txt": "a caption"}] * count
    return sides | litdata_side(folder / "litdata-raw", items, stack=False)


def compare(name: str, sides: dict[str, Rate], rounds: int) -> None:
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in random.Random(number).sample(list(sides), len(sides)):
            rate = sides[side]()
            if number:  # the first round warms up
                rates[side].append(rate)
    for side, found in rates.items():
        ratios = [one / other for one, other in zip(found, rates["webdataset"], strict=True)]
        print(
            f"| {name} | {side} | {statistics.median(found):,.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| case | side | samples/s a core | over webdataset |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare("256² JPEG", pictures(folder, (256, 256), 256), options.rounds)
        compare("1024×768 JPEG to 256²", pictures(folder, (768, 1024), 64), options.rounds)
        compare("latents 4×32×32", latents(folder, 2048), options.rounds)
        compare("raw samples", raw_samples(folder, 4096), options.rounds)


if __name__ == "__main__":
    main()
