"""First stages as folders that diffusers loads."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ldm.interop.autoencoder import autoencoder_table, folded
from ldm.interop.autoencoder_configs import (
    PATCHED_CLASS,
    PATCHED_MODULE,
    autoencoder_to_diffusers,
    quantised_to_diffusers,
)
from ldm.interop.dc_ae import dc_ae_table, dc_ae_to_diffusers
from ldm.interop.files import write_folder
from ldm.models import Autoencoder, DeepCompressionAutoencoder, KLAutoencoder, QuantisedAutoencoder

_SOURCE = Path(__file__).with_name("patched.py")


@dataclass(frozen=True)
class FirstStage:
    """An autoencoder with the mean and standard deviation of its latents, a number a channel."""

    autoencoder: Autoencoder
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def scale(self) -> float:
        """The one number that brings all channels together to variance 1, as far as one can."""
        return (sum(value**2 for value in self.std) / len(self.std)) ** -0.5


def write_first_stage(folder: Path, first: FirstStage, size: int) -> list[str]:
    """The autoencoder, for pictures of `size`; returns the library and the class that load it.

    An AutoencoderKL's latents are normalised. A VQModel and an AutoencoderDC have no layer that
    could take that in: they say one scale for all channels. ValueError says what diffusers cannot
    express, and nothing is written then.
    """
    match first.autoencoder:
        case KLAutoencoder():
            return _write_kl(folder, first.autoencoder, first, size)
        case QuantisedAutoencoder() as quantised:
            config = quantised_to_diffusers(quantised, size, scale=first.scale)
            state = autoencoder_table(quantised).give(quantised.state_dict())
        case DeepCompressionAutoencoder() as deep:
            config = dc_ae_to_diffusers(deep, scale=first.scale)
            state = dc_ae_table(deep).give(deep.state_dict())
        case other:
            raise ValueError(
                f"diffusers has no counterpart of {type(other).__name__}: use --to safetensors"
            )
    write_folder(folder, config, state)
    return ["diffusers", config["_class_name"]]


def _write_kl(folder: Path, autoencoder: KLAutoencoder, first: FirstStage, size: int) -> list[str]:
    network = with_latent_convolutions(autoencoder)
    state = autoencoder_table(network).give(folded(autoencoder.state_dict(), first.mean, first.std))
    config = autoencoder_to_diffusers(network, size, patched=True)
    write_folder(folder, config, state)
    if config["_class_name"] != PATCHED_CLASS:
        return ["diffusers", config["_class_name"]]
    (folder / f"{PATCHED_MODULE}.py").write_text(_SOURCE.read_text())
    return [PATCHED_MODULE, PATCHED_CLASS]


def with_latent_convolutions(network: KLAutoencoder) -> KLAutoencoder:
    """A copy that has the 1x1 convolutions beside the latents, for `folded` to fill."""
    copy = deepcopy(network)
    channels = network.latent_channels
    copy.to_moments = nn.Conv2d(2 * channels, 2 * channels, 1)
    copy.from_latent = nn.Conv2d(channels, channels, 1)
    return copy


def needs_kl(first: FirstStage, pipeline: str) -> KLAutoencoder:
    """The autoencoder of a pipeline whose latents must come normalised; ValueError for others."""
    if isinstance(first.autoencoder, KLAutoencoder):
        return first.autoencoder
    raise ValueError(
        f"{pipeline} takes latents that its autoencoder has normalised, and a "
        f"{type(first.autoencoder).__name__} cannot: export both parts with --to safetensors"
    )
