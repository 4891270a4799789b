"""The parts of other projects' folders and files, as modules of ours that hold their weights.

A source is a folder that diffusers saved (a pipeline or one model) or one file: a checkpoint of
CompVis or Stability, or of DiT, SiT and LightningDiT as their authors publish them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ldm.interop import compvis
from ldm.interop.autoencoder import (
    autoencoder_table,
    compvis_autoencoder_table,
    load_autoencoder,
    with_new_attention_names,
)
from ldm.interop.autoencoder_configs import DIFFUSERS_CLASS as KL_CLASS
from ldm.interop.autoencoder_configs import (
    PATCHED_CLASS,
    VQ_CLASS,
    autoencoder_arguments,
    latent_scale,
    quantised_arguments,
)
from ldm.interop.dc_ae import DIFFUSERS_CLASS as DC_CLASS
from ldm.interop.dc_ae import dc_ae_arguments, dc_ae_table
from ldm.interop.files import read_config, read_folder_weights, read_weights
from ldm.interop.networks import NETWORK_CLASSES, network_class, network_from_diffusers
from ldm.interop.original_dit import is_original_dit, load_original_dit, original_dit_arguments
from ldm.interop.schedulers import Described, described_by, of_flow
from ldm.interop.unet import COMPVIS, unet_table
from ldm.models import (
    Autoencoder,
    DeepCompressionAutoencoder,
    DiT,
    KLAutoencoder,
    QuantisedAutoencoder,
    UNet,
    VectorQuantizer,
)

AUTOENCODER_CLASSES = (KL_CLASS, VQ_CLASS, DC_CLASS, PATCHED_CLASS)
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3Pipeline",
    "DiTPipeline",
)


@dataclass(frozen=True)
class ReadNetwork:
    """A denoising network and the arguments that build it."""

    network: nn.Module
    arguments: Mapping[str, Any]

    @property
    def node(self) -> dict[str, Any]:
        """As a configuration names it."""
        return {"_target_": f"ldm.models.{type(self.network).__name__}", **self.arguments}


@dataclass(frozen=True)
class ReadAutoencoder:
    """An autoencoder, the arguments that build it, and the mean and the standard deviation that
    its authors give for all latent channels."""

    autoencoder: Autoencoder
    arguments: Mapping[str, Any]
    mean: float
    std: float

    @property
    def node(self) -> dict[str, Any]:
        """As a configuration names it."""
        return {"_target_": f"ldm.models.{type(self.autoencoder).__name__}", **self.arguments}


def holds_models(source: Path) -> bool:
    """Whether there is a file, or a folder that diffusers saved."""
    return source.is_file() or any(
        (source / name).is_file() for name in ("model_index.json", "config.json")
    )


def read_network(source: Path, family: str = "dit") -> ReadNetwork | None:
    """The denoising network, None where the source has none. `family` says whose a checkpoint with
    the names of DiT is, which SiT shares: "dit" or "sit"."""
    if source.is_dir():
        folder = _part(source, ("unet", "transformer"), NETWORK_CLASSES)
        if folder is None:
            return None
        config, state = read_config(folder), read_folder_weights(folder)
        flow = _walks_a_flow(source)
        return ReadNetwork(*network_from_diffusers(config, state, str(folder), flow=flow))
    whole = read_weights(source)
    if is_original_dit(whole):
        arguments = original_dit_arguments(whole, family)
        dit = DiT(**arguments)
        load_original_dit(dit, whole, str(source))
        return ReadNetwork(dit, arguments)
    state = compvis.part(whole, compvis.UNET)
    if "input_blocks.0.0.weight" not in state:
        return None
    arguments = compvis.unet_arguments_of(state)
    unet = UNet(**arguments)
    convolutions = compvis.projects_by_convolutions(state)
    unet.load_state_dict(
        unet_table(unet, COMPVIS, convolutions=convolutions).take(state, str(source))
    )
    return ReadNetwork(unet, arguments)


def read_autoencoder(source: Path) -> ReadAutoencoder | None:
    """The first stage, None where the source has none. A CompVis checkpoint does not say what its
    latents are multiplied with: Stable Diffusion 1 and 2's scale is taken."""
    if source.is_dir():
        folder = _part(source, ("vae", "vqvae"), AUTOENCODER_CLASSES)
        return None if folder is None else _diffusers_autoencoder(folder)
    state = compvis.part(read_weights(source), compvis.FIRST_STAGE)
    if "encoder.conv_in.weight" not in state:
        return None
    state = {n: v for n, v in state.items() if not n.startswith(("loss.", "model_ema."))}
    arguments = compvis.autoencoder_arguments_of(state)
    autoencoder = convolutional(arguments)
    load_autoencoder(autoencoder, compvis_autoencoder_table(autoencoder), state, str(source))
    return ReadAutoencoder(autoencoder, arguments, 0.0, 1 / 0.18215)


def read_described(source: Path) -> Described | None:
    """What a pipeline's scheduler says of the network's training; None without one."""
    folder = source / "scheduler" if (source / "model_index.json").is_file() else source
    name = "scheduler_config.json"
    return described_by(read_config(folder, name)) if (folder / name).is_file() else None


def _walks_a_flow(source: Path) -> bool:
    """As the scheduler of the pipeline says, where there is one."""
    folder, name = source / "scheduler", "scheduler_config.json"
    return (folder / name).is_file() and of_flow(read_config(folder, name))


def convolutional(arguments: Mapping[str, Any]) -> KLAutoencoder | QuantisedAutoencoder:
    """The autoencoder that the arguments describe; a quantizer stands among them as a node."""
    if "quantizer" not in arguments:
        return KLAutoencoder(**arguments)
    node = {name: value for name, value in arguments["quantizer"].items() if name != "_target_"}
    return QuantisedAutoencoder(**{**arguments, "quantizer": VectorQuantizer(**node)})


def _diffusers_autoencoder(folder: Path) -> ReadAutoencoder:
    config, state = read_config(folder), read_folder_weights(folder)
    mean, std = latent_scale(config)
    if config["_class_name"] == DC_CLASS:
        arguments = dc_ae_arguments(config)
        deep = DeepCompressionAutoencoder(**arguments)
        deep.load_state_dict(dc_ae_table(deep).take(state, str(folder)))
        return ReadAutoencoder(deep, arguments, 0.0, 1 / config.get("scaling_factor", 1.0))
    vector = config["_class_name"] == VQ_CLASS
    arguments = quantised_arguments(config) if vector else autoencoder_arguments(config)
    network = convolutional(arguments)
    state = with_new_attention_names(state)
    load_autoencoder(network, autoencoder_table(network), state, str(folder))
    return ReadAutoencoder(network, arguments, mean, std)


def _part(source: Path, names: tuple[str, ...], classes: tuple[str, ...]) -> Path | None:
    """The folder of the model of one of `classes`: a pipeline's part, or the source itself.

    ValueError for a pipeline or a model that has no counterpart here.
    """
    if (source / "model_index.json").is_file():
        kind = read_config(source, "model_index.json").get("_class_name", "")
        if kind not in PIPELINES:
            raise ValueError(f"{source}: {kind} is not known here; known are {_known()}")
        folder = next((source / name for name in names if (source / name).is_dir()), None)
        if folder is not None and (found := network_class(read_config(folder))) not in classes:
            raise ValueError(f"{folder}: {found} is not known here; known are {', '.join(classes)}")
        return folder
    if (source / "scheduler_config.json").is_file():
        return None
    kind = network_class(read_config(source))
    if kind not in NETWORK_CLASSES + AUTOENCODER_CLASSES:
        raise ValueError(f"{source}: {kind} is not known here; known are {_known()}")
    return source if kind in classes else None


def _known() -> str:
    models = ", ".join(NETWORK_CLASSES + AUTOENCODER_CLASSES)
    return f"{', '.join(PIPELINES)}, and single models: {models}"
