"""What the commands and train.py do, as functions: the ways in from Python (docs/python.md).

Importing this imports Hydra and Lightning. `ldm.diffusion`, `ldm.models`, `ldm.data`,
`ldm.metrics`, `ldm.frozen` and `ldm.generate` need neither: one calls their constructors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ldm.commands import parser_of_all
from ldm.commands.building import build
from ldm.commands.check import checked
from ldm.commands.composing import composed
from ldm.commands.drawing import as_trained, device_of
from ldm.commands.errors import explain
from ldm.commands.first_stage import load_codec as _load_codec
from ldm.commands.fitting import plan
from ldm.commands.reconstruct import read_picture as _read_picture
from ldm.commands.train import train as _train
from ldm.commands.trained import load_diffusion
from ldm.frozen import LatentCodec
from ldm.generate import TextToImage
from ldm.runs.folder import run_folder
from ldm.runs.signals import stop_signals
from ldm.types import Image

__all__ = [
    "build",
    "check",
    "command",
    "compose",
    "load_codec",
    "load_text_to_image",
    "read_picture",
    "train",
]


def load_text_to_image(
    run: str | Path, *, first_stage: str | Path | None = None, device: str | None = None
) -> TextToImage:
    """What draws the samples of a second stage: the averaged weights of its newest checkpoint, or
    of the one that is named, with the run's own sampler, guidance and precision;
    `dataclasses.replace` puts others in their place.

    `first_stage` is another place of the first stage than the run remembers, or one with another
    decoder. Everything is on `device`, by default the GPU if there is one. ValueError or
    FileNotFoundError says what is missing or does not belong together.
    """
    place = None if first_stage is None else str(first_stage)
    return as_trained(load_diffusion(str(run), place), device_of(device))


def load_codec(run: str | Path, *, device: str | None = None) -> LatentCodec:
    """The first stage of a finished run, or an autoencoder of another tool, with the statistics
    of its latents; its network is `.autoencoder`. On `device`, by default the GPU if there is one.
    """
    return _load_codec(str(run)).to(device_of(device))


def read_picture(path: str | Path, size: int) -> Image:
    """`[1 3 size size]` in [-1, 1], on the CPU, decoded and cropped as training does it; ValueError
    names a file that is no picture."""
    picture: Image = _read_picture(Path(path), size)
    return picture


def compose(*overrides: str) -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would train with. ValueError, in one
    line, for keys and choices that do not exist."""
    with _in_a_line(overrides):
        return composed(overrides)


def check(config: DictConfig) -> list[tuple[str, str]]:
    """What training would do, the lines of `ldm check` as (name, value); ValueError names the key
    where training would be refused."""
    copy = deepcopy(config)
    with _in_a_line():
        checked(copy)
        return list(plan(copy))


def train(config: DictConfig) -> Path:
    """Train in this process as train.py does, or go on where the run's last checkpoint stands; the
    run's folder. `config` itself is not changed.

    ValueError for what is refused. SystemExit with the code of train.py where the training failed,
    or was asked to stop by a signal and has saved: Ctrl-C does, and means what it did before when
    the training is over. Random states of the process are seeded.
    """
    with stop_signals.borrowed(), _in_a_line():
        code = _train(deepcopy(config), settings=["(ldm.api.train)"])
    if code:
        raise SystemExit(code)
    return run_folder(config.run_root, config.name).path


def command(*words: str) -> None:
    """`ldm WORDS` in this process, for what has no function here: it prints and leaves files as
    docs/ says. What is refused raises ValueError or FileNotFoundError; SystemExit has the exit code
    of what failed otherwise."""
    arguments = parser_of_all().parse_args(words)
    with stop_signals.borrowed(), _in_a_line():
        code = arguments.func(arguments)
    if code:
        raise SystemExit(code)


@contextmanager
def _in_a_line(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Errors of Hydra and OmegaConf as the command line tells them."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, list(overrides))) from None
