"""`ldm stats make`: what is remembered of a data set, for Fréchet distances and their kin."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.commands.options import refuse_below


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("stats", help="reference statistics of a data set")
    verbs = parser.add_subparsers(dest="stats_verb", required=True, metavar="VERB")
    make = verbs.add_parser("make", help="one pass over the data, one small file")
    make.add_argument("data", help="tar shards (globs and braces too) or a folder of pictures")
    make.add_argument("--features", default="clip:asset:emoji_clip", help=", ".join(KINDS))
    make.add_argument("--size", type=int, required=True, help="side that pictures are brought to")
    make.add_argument("--keep", type=int, default=10_000, help="pictures whose features are kept")
    make.add_argument("--name", help="by which metrics find it, in the cache folder")
    make.add_argument("--out", metavar="FILE", help="a .safetensors file in place of a name")
    make.add_argument("--batch-size", type=int, default=64)
    make.add_argument("--workers", type=int, default=0)
    make.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    make.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say what it holds."""
    if (arguments.name is None) == (arguments.out is None):
        raise ValueError("give the statistics either a --name or a file with --out")
    refuse_below(arguments, 1, "batch_size", "size")
    refuse_below(arguments, 0, "keep", "workers")
    if arguments.out is not None and Path(arguments.out).suffix != ".safetensors":
        raise ValueError(f"--out {arguments.out}: name a file that ends in .safetensors")

    from ldm.commands.drawing import device_of
    from ldm.metrics import reference_path, reference_statistics

    features = features_of(arguments.features)
    device = device_of(arguments.device)
    batches = (images.to(device) for images in _pictures(arguments))
    reference = reference_statistics(features, batches, arguments.keep)
    path = Path(arguments.out) if arguments.out else reference_path(arguments.name)
    reference.save(path)
    kept = 0 if reference.samples is None else len(reference.samples)
    print(f"{path}: {reference.features}, {reference.count} pictures, {kept} kept singly")
    return 0


def _clip(folder: str) -> Any:
    from ldm.frozen.features import clip_features

    return clip_features(folder or "asset:emoji_clip")


def _dinov2(folder: str) -> Any:
    from ldm.frozen.features import Dinov2Features

    return Dinov2Features(folder)


def _inception(weights: str) -> Any:
    from ldm.frozen.features import InceptionFeatures

    return InceptionFeatures("pool", weights or None)


def _spatial(weights: str) -> Any:
    from ldm.frozen.features import InceptionFeatures

    return InceptionFeatures("spatial", weights or None)


KINDS = {
    "clip:FOLDER": _clip,
    "dinov2:FOLDER": _dinov2,
    "inception[:FILE]": _inception,
    "inception_spatial[:FILE]": _spatial,
}


def features_of(asked: str) -> Any:
    """The features that `kind` or `kind:where` names; ValueError lists the kinds."""
    kind, _, where = asked.partition(":")
    for known, make in KINDS.items():
        if kind == known.partition(":")[0].partition("[")[0]:
            if not where and known.endswith(":FOLDER") and kind != "clip":
                raise ValueError(f"--features {asked}: name the folder, {known}")
            return make(where)
    raise ValueError(f"--features {asked}: no such features (there are: {', '.join(KINDS)})")


def _pictures(arguments: argparse.Namespace) -> Iterator[Any]:
    from ldm.commands.judging import open_folder
    from ldm.data import ShardData, all_pictures

    if Path(arguments.data).is_dir():
        folder = open_folder(Path(arguments.data))
        numbers = range(len(folder.files))
        for images, _ in folder.batches(numbers, arguments.batch_size, side=arguments.size):
            yield images
        return
    data = ShardData(arguments.data, arguments.size)
    batches = all_pictures(data, batch=arguments.batch_size, workers=arguments.workers)
    yield from (batch["image"] for batch in batches)
