"""Training from latent shards against training from their pictures: equal losses, less work.

    OMP_NUM_THREADS=1 python tests/benchmarks/latent_training.py runs/FIRST_STAGE

Encodes the emoji, then trains with the same draws on pictures, on latents, and on pictures whose
moments and text are rounded as they are stored; one thread, float32. What counts is the processor
time of a step, from one step's end to the next one's: the median, and its range.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from hydra import compose, initialize_config_dir

from ldm.commands import encode
from ldm.commands.parts import DiffusionStage
from ldm.commands.train import train
from ldm.frozen import LatentCodec
from ldm.frozen.captions import OpenClipCaptions
from ldm.training.callbacks import StepProgress
from ldm.types import Condition, Posterior

CONF = Path(__file__).parents[2] / "conf"


def trained(root: Path, name: str, settings: list[str]) -> tuple[list[float], list[float]]:
    """Each step's loss, and its seconds of processor time."""
    ends: list[float] = []
    ordinary = StepProgress.on_train_batch_end

    def end(self, *arguments):
        ordinary(self, *arguments)
        ends.append(time.process_time())

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*settings, f"name={name}", f"run_root={root}"])
    with (
        mock.patch.object(StepProgress, "on_train_batch_end", end),
        mock.patch.object(DiffusionStage, "callbacks", return_value=[]),  # nothing is drawn
    ):
        assert train(config) == 0
    lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return losses, [b - a for a, b in itertools.pairwise(ends)][2:]  # what is warm


@contextmanager
def as_stored() -> Iterator[None]:
    """Moments and text states of pictures in half precision, as latent shards hold them."""
    encode_batch, say = LatentCodec._posterior, OpenClipCaptions.__call__

    def moments(codec, image):
        posterior = encode_batch(codec, image)
        log_variance = (2 * posterior.std.log()).half().float()
        return Posterior(posterior.mean.half().float(), (log_variance / 2).exp())

    def text(encoder, captions):
        said = say(encoder, captions)
        return Condition(said.tokens.half().float(), said.mask, said.pooled.half().float())

    with (
        mock.patch.object(LatentCodec, "_posterior", moments),
        mock.patch.object(OpenClipCaptions, "__call__", text),
    ):
        yield


def apart(found: list[float], wanted: list[float]) -> str:
    shares = [abs(a - b) / b for a, b in zip(found, wanted, strict=True)]
    return f"{shares[0]:.1e} in the first step, at most {max(shares):.1e} in all"


def encoded(first_stage: str, root: Path) -> None:
    parser = argparse.ArgumentParser()
    encode.add_parser(parser.add_subparsers())
    words = parser.parse_args(["encode", first_stage, str(root / "latents")])
    assert words.func(words) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first_stage")
    parser.add_argument("override", nargs="*", help="as for train.py")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings = [
        "experiment=emoji/diffusion",
        f"first_stage={options.first_stage}",
        f"trainer.max_steps={options.steps}",
        "trainer=cpu",
        "precision=32-true",
        "global_batch=32",
        "log_every=1",
        f"evaluation.every={options.steps}",
        f"checkpoint.every={options.steps}",
        "module.lr_schedule.warmup=5",
        *options.override,
    ]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        encoded(options.first_stage, root)
        wanted, slow = trained(root, "pictures", settings)
        latents = ["data=latents", f"data.folder={root / 'latents'}"]
        found, fast = trained(root, "latents", [*settings, *latents])
        with as_stored():
            rounded, _ = trained(root, "rounded", settings)
    print(f"{len(wanted)} steps, losses {wanted[0]:.4f} to {wanted[-1]:.4f}; relative differences:")
    print(f"latents from pictures: {apart(found, wanted)}")
    print(f"latents from pictures rounded as they are stored: {apart(found, rounded)}")
    for name, seconds in {"pictures": slow, "latents": fast}.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"{name}: {middle:.3f} s a step ({low:.3f} to {high:.3f})")
    print(f"faster by {statistics.median(slow) / statistics.median(fast):.2f}")


if __name__ == "__main__":
    main()
