"""`ldm encode`: the first stage's latents into shards, so that stage two trains without it."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("encode", help="latent shards, from which stage two is faster")
    parser.add_argument("run", help="the folder of a finished autoencoder run")
    parser.add_argument("out", metavar="DST", help="where latent shards go")
    parser.add_argument(
        "--shards", default="asset:emoji/train-*.tar", help="pictures (default: the emoji)"
    )
    parser.add_argument("--split", default="train", help="names the files (default: train)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the shards that are not there yet; the same command again goes on."""
    import torch
    from rich.progress import track

    from ldm.commands.parts import load_codec
    from ldm.data import ShardData
    from ldm.data.encoding import LatentFolder
    from ldm.data.latents import Layout
    from ldm.runs.folder import RunFolder

    codec = load_codec(arguments.run)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    codec.to(device)
    size = RunFolder(Path(arguments.run)).config()["image_size"]
    data = ShardData(arguments.shards, size)
    made_by = {
        "first_stage": codec.statistics.fingerprint or "",
        "source": data.content_hash,
        "size": str(size),
    }
    folder = LatentFolder(
        Path(arguments.out), arguments.split, Layout(*codec.latent_shape(size)), made_by
    )
    for path, samples in folder.pending(data.set.sizes, 0, 1):
        with folder.shard(path) as writer:
            steps = range(samples.start, samples.stop, arguments.batch_size)
            for start in track(steps, path.name, transient=True, disable=not sys.stderr.isatty()):
                stop = min(start + arguments.batch_size, samples.stop)
                batch = _read(data, range(start, stop))
                with torch.no_grad():
                    posterior = codec.autoencoder.encode(batch["image"].to(device))
                writer.add(batch["key"], batch["caption"], [posterior])
    print(f"{arguments.out}: {len(data)} latents; train with data=latents data.folder=…")
    return 0


def _read(data: Any, samples: range) -> dict[str, Any]:
    """These samples in order, normalised; ValueError where one cannot be read."""
    import numpy as np

    from ldm.data import normalise
    from ldm.data.order import Rows

    wanted = np.arange(samples.start, samples.stop)
    batch, faults = data.read(Rows(wanted, wanted, seed=0))
    if faults:
        raise ValueError(f"{faults[0]}; mend the shards (`ldm shards verify`), then encode")
    return {**batch, "image": normalise(batch["image"])}
