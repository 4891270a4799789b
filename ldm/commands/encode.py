"""`ldm encode`: latents and text states into shards, so that stage two trains without the networks
that make them. Under torchrun or srun the ranks share the shards out among them."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ldm.commands.options import refuse_below

_AS_TRAINED = ("keep", "reading")


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("encode", help="latent shards, from which stage two is faster")
    parser.add_argument("run", help="a finished autoencoder run, or what `ldm import` wrote")
    parser.add_argument("out", metavar="DST", help="where latent shards go")
    parser.add_argument(
        "--shards",
        nargs="+",
        help="pictures (default: those that the first stage was trained on)",
    )
    parser.add_argument("--split", default="train", help="names the files (default: train)")
    parser.add_argument("--flip", action="store_true", help="mirror images too, as a second set")
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="the second stage's text encoder, as for train.py: text=sd15 text.encoder.source=…",
    )
    parser.add_argument("--no-text", action="store_true", help="captions instead of states")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the shards that are not there yet; the same command again goes on."""
    import torch
    from rich.progress import track

    from ldm.commands.drawing import device_of
    from ldm.commands.first_stage import first_stage_at, load_codec
    from ldm.data import DataError
    from ldm.runs.folder import RunFolder
    from ldm.runs.processes import rank, world

    refuse_below(arguments, 1, "batch_size")
    refuse_below(arguments, 0, "workers")
    if not re.fullmatch(r"[\w-]+", arguments.split):
        raise ValueError(f"--split {arguments.split}: begins names of files; give a word")
    codec = load_codec(arguments.run)
    captions = None if arguments.no_text else _text_encoder(arguments.text)
    device = device_of(arguments.device)
    codec.to(device)
    if captions is not None:
        captions.to(device)
    source = RunFolder(first_stage_at(arguments.run))
    if not source.config_file.is_file():
        raise ValueError(
            f"{arguments.run} is another tool's and says no image_size: `ldm import "
            f"{arguments.run} OUT --image-size N` first, then encode OUT"
        )
    config = source.config()
    data = pictures_of(config, arguments.run, arguments.shards)
    folder = _folder(arguments, codec, captions, data)
    todo = folder.pending(data.set.sizes, rank(), world())
    for path, samples in todo:
        try:
            with folder.shard(path) as writer:
                for batch in track(
                    _batches(data, samples, arguments),
                    path.name,
                    total=-(-len(samples) // arguments.batch_size),
                    transient=True,
                    disable=not sys.stderr.isatty(),
                ):
                    images = batch["image"].to(device)
                    views = [images, images.flip(-1)][: folder.layout.views]
                    with torch.no_grad():
                        moments = [codec.autoencoder.encode(view) for view in views]
                    said = None if captions is None else captions(batch["caption"])
                    writer.add(batch["key"], batch["caption"], moments, said)
        except DataError as error:
            raise ValueError(str(error)) from None
    _tell(arguments, len(data), len(todo), rank(), world())
    return 0


def pictures_of(config: dict[str, Any], run: str, shards: list[str] | None) -> Any:
    """The shards' pictures, by default those that the first stage was trained on, and of them those
    that its `keep` left, read as its `reading` says."""
    from ldm.commands.building import build
    from ldm.data import ShardData

    node = config.get("data", {}).get("train", {})
    if "shards" not in node and isinstance(node.get("data"), dict):
        node = node["data"]  # of buckets
    parts = {name: build(node[name], f"data.train.{name}") for name in _AS_TRAINED if name in node}
    return ShardData(
        shards or _shards_of(node, run),
        config["image_size"],
        keep=parts.get("keep"),
        reading=parts.get("reading"),
    )


def _shards_of(node: dict[str, Any], run: str) -> Any:
    """Those that the first stage was trained on."""
    shards = node.get("shards")
    if not shards:
        raise ValueError(
            f"{run} does not say which shards it was trained on: name pictures with --shards, such "
            "as --shards 'my-shards/train-*.tar' (asset:emoji/train-*.tar are the emoji)"
        )
    return shards


def _text_encoder(overrides: list[str]) -> Any:
    """The one that the second stage would build with these settings."""
    from ldm.commands.building import build
    from ldm.commands.composing import composed

    for override in overrides:
        if not override.lstrip("+").startswith(("text=", "text.")):
            raise ValueError(f"--text {override}: only the group text is set here; write text=NAME")
    config = composed(["name=encode", "first_stage=none", *overrides])
    unfit = {
        "ldm.frozen.token_numbers.TokenNumbers": "half precision does not hold numbers of tokens",
        "ldm.frozen.sizes.SizedCaptions": "latent shards do not hold the pictures' sizes",
    }
    why = unfit.get(config.text.encoder._target_)
    if why is not None:
        raise ValueError(f"--text {' '.join(overrides)}: {why}; encode with --no-text")
    return build(config.text.encoder, "text.encoder")


def _folder(arguments: argparse.Namespace, codec: Any, captions: Any, data: Any) -> Any:
    """What the shards will hold, and the key that they are made by."""
    from ldm.data.encoding import LatentFolder
    from ldm.data.latents import Layout

    channels, height, width = codec.latent_shape(data.size)
    made_by = {
        "first_stage": codec.statistics.fingerprint or "",
        "source": data.content_hash,
        "transforms": data.transforms,
    }
    null = None
    tokens = token_width = pooled_width = 0
    if captions is not None:
        null = captions([""])
        tokens, token_width = null.tokens.shape[1:]
        pooled_width = captions.pooled_width
        made_by["text"] = captions.fingerprint()
    layout = Layout(channels, height, width, 1 + arguments.flip, tokens, token_width, pooled_width)
    return LatentFolder(Path(arguments.out), arguments.split, layout, made_by, null)


def _batches(data: Any, samples: range, arguments: argparse.Namespace) -> Any:
    """The samples in their order, normalised; ValueError where one cannot be read."""
    import numpy as np

    from ldm.data import OrderedBatches, normalise

    batches = OrderedBatches(data, samples, batch=arguments.batch_size, workers=arguments.workers)
    for step, batch in enumerate(batches):
        wanted = np.asarray(samples[step * arguments.batch_size :][: len(batch["key"])])
        for key, own in zip(batch["key"], data.set.keys(data.set.lines(wanted)), strict=True):
            if key != own:
                raise ValueError(
                    f"sample {own} of {', '.join(data.set.where(wanted))} cannot be read; mend the "
                    "shards (`ldm shards verify` says how), then encode"
                )
        yield {**batch, "image": normalise(batch["image"])}


def _tell(arguments: argparse.Namespace, count: int, written: int, rank: int, world: int) -> None:
    share = f"rank {rank} of {world}: " if world > 1 else ""
    what = f"{count} latents" + (", mirror images too" if arguments.flip else "")
    print(
        f"{share}{arguments.out}: {what}, {written} shards written now; train with "
        f"data=latents data.folder={arguments.out}"
    )
