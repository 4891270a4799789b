"""Small pictures, tars and folders whose contents tests can tell apart."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image as Picture


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def picture(number, size=16):
    """A picture whose top left pixel spells its number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
    pixels[0, 0] = number % 256, number // 256 % 256, number // 65536
    return pixels


def number_of(image):
    """The number that `picture` wrote."""
    red, green, blue = image[:, 0, 0].tolist()
    return red + 256 * green + 65536 * blue


def write_tar(path, members, **options):
    """`members` are (name, bytes), written as they are by Python's own tarfile."""
    with tarfile.open(path, "w", **options) as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def sample(number, size=16, caption=None, key=None, kind="PNG"):
    """Members of one sample."""
    key = key or f"{number:06d}"
    text = f"number {number}" if caption is None else caption
    return [
        (f"{key}.{kind.lower()}", encoded(picture(number, size), kind)),
        (f"{key}.txt", text.encode()),
    ]


def write_shards(folder, sizes, size=16):
    """Shards of so many samples each, numbered through."""
    number = 0
    for shard, count in enumerate(sizes):
        members = []
        for _ in range(count):
            members += sample(number, size)
            number += 1
        write_tar(folder / f"train-{shard:05d}.tar", members)
    return str(folder / "train-*.tar")


def write_folder(folder: Path, captions, size=16, metadata=True):
    """A folder of pictures with metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, caption in enumerate(captions):
        name = f"{number:04d}.png"
        (folder / name).write_bytes(encoded(picture(number, size)))
        lines.append(json.dumps({"file_name": name, "text": caption}))
    if metadata:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
