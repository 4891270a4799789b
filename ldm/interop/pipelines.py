"""Whole diffusers pipelines, written as folders that `from_pretrained` loads."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ldm.interop import compvis
from ldm.interop.autoencoder import (
    PATCHED_CLASS,
    autoencoder_table,
    autoencoder_to_diffusers,
    compvis_autoencoder_table,
    folded,
)
from ldm.interop.dit import diffusers_dit_table, dit_to_diffusers
from ldm.interop.files import write_folder, write_json
from ldm.interop.schedulers import Described, scheduler_config
from ldm.interop.text import clip_text_config, clip_text_table, write_clip_tokenizer
from ldm.interop.unet import COMPVIS, diffusers_names, unet_table, unet_to_diffusers
from ldm.models import DiT, KLAutoencoder, MMDiT, UNet

DIFFUSERS_VERSION = "0.38.0"  # the oldest whose configs these are


@dataclass(frozen=True)
class FirstStage:
    """An autoencoder with the mean and standard deviation of its latents, a number a channel."""

    autoencoder: KLAutoencoder
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Tower:
    """An open_clip model, its tokenizer, and the layer whose states are told (-1 the last)."""

    model: Any
    tokenizer: Any
    layer: int = -1


def write_first_stage(folder: Path, first: FirstStage, size: int) -> list[str]:
    """An AutoencoderKL whose latents are normalised, for pictures of `size`; returns the library
    and the class that load it."""
    network = with_latent_convolutions(first.autoencoder)
    state = autoencoder_table(network).give(
        folded(first.autoencoder.state_dict(), first.mean, first.std)
    )
    config = autoencoder_to_diffusers(network, size, patched=True)
    write_folder(folder, config, state)
    patched = config["_class_name"] == PATCHED_CLASS
    return ["ldm.interop.patched" if patched else "diffusers", config["_class_name"]]


def with_latent_convolutions(network: KLAutoencoder) -> KLAutoencoder:
    """A copy that has the 1x1 convolutions beside the latents, for `folded` to fill."""
    copy = deepcopy(network)
    channels = network.latent_channels
    copy.to_moments = nn.Conv2d(2 * channels, 2 * channels, 1)
    copy.from_latent = nn.Conv2d(channels, channels, 1)
    return copy


def write_text_encoder(folder: Path, tower: Tower) -> list[str]:
    """A CLIPTextModel in `folder`, its tokenizer beside it."""
    layers = len(tower.model.transformer.resblocks) + 1 + tower.layer
    state = clip_text_table(tower.model, layers).give(tower.model.state_dict())
    del state["text_projection.weight"]  # this class has none
    config = clip_text_config(tower.model, layers, projected=False)
    write_folder(folder, config, state, stem="model")
    write_clip_tokenizer(folder.with_name("tokenizer"), tower.tokenizer)
    return ["transformers", "CLIPTextModel"]


def write_stable_diffusion(
    folder: Path,
    network: UNet,
    *,
    first: FirstStage,
    tower: Tower,
    described: Described,
    size: int,
) -> None:
    """A StableDiffusionPipeline for latents of `size`; nothing is written where ValueError says
    what diffusers cannot express."""
    config = unet_to_diffusers(network, size)
    if network.pooled_width:
        raise ValueError(
            f"StableDiffusionPipeline gives its U-Net no pooled text, and this one has "
            f"pooled_width={network.pooled_width}: train with backbone.pooled_width=0"
        )
    scheduler = scheduler_config(described, joint=False)
    table = unet_table(network, diffusers_names(config), convolutions=False)
    vae = write_first_stage(folder / "vae", first, size * first.autoencoder.factor)
    write_folder(folder / "unet", config, table.give(network.state_dict()))
    text_encoder = write_text_encoder(folder / "text_encoder", tower)
    _write_index(
        folder,
        "StableDiffusionPipeline",
        scheduler,
        {
            "vae": vae,
            "text_encoder": text_encoder,
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", config["_class_name"]],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        },
    )


def write_dit(
    folder: Path, network: DiT, *, first: FirstStage, described: Described, size: int
) -> None:
    """A DiTPipeline, which draws classes, for latents of `size`."""
    config = dit_to_diffusers(network, size)
    scheduler = scheduler_config(described, joint=False)
    vae = write_first_stage(folder / "vae", first, size * first.autoencoder.factor)
    state = diffusers_dit_table(network).give(network.state_dict())
    write_folder(folder / "transformer", config, state)
    _write_index(
        folder,
        "DiTPipeline",
        scheduler,
        {"vae": vae, "transformer": ["diffusers", config["_class_name"]]},
    )


def _write_index(
    folder: Path, name: str, scheduler: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **parts,
    }
    write_json(folder / "model_index.json", index)


def write_compvis(
    folder: Path, network: nn.Module | None, *, first: FirstStage, tower: Tower | None
) -> None:
    """model.safetensors with `first_stage_model.*`, and where they are given
    `model.diffusion_model.*` and `cond_stage_model.model.*`, as Stable Diffusion 2.x has them, for
    latents that need no scale. ValueError names what CompVis' code cannot express."""
    if first.autoencoder.encoder.patch > 1:
        raise ValueError(
            "CompVis' autoencoder folds no pixels into channels, and this one has "
            f"patch={first.autoencoder.encoder.patch}: train one with autoencoder.patch=1"
        )
    groups = {first.autoencoder.encoder.norm_out.num_groups}
    if isinstance(network, UNet):
        groups.add(network.groups)
    if groups != {32}:
        raise ValueError(
            f"CompVis' code normalises in 32 groups, and these networks in {sorted(groups)}: "
            "train with groups=32"
        )
    autoencoder = with_latent_convolutions(first.autoencoder)
    state = folded(first.autoencoder.state_dict(), first.mean, first.std)
    parts = {compvis.FIRST_STAGE: compvis_autoencoder_table(autoencoder).give(state)}
    if network is not None:
        if not isinstance(network, UNet):
            raise ValueError(
                f"CompVis' checkpoints hold a U-Net, and this network is a "
                f"{type(network).__name__}: use --to safetensors"
            )
        table = unet_table(network, COMPVIS, convolutions=False)
        parts[compvis.UNET] = table.give(network.state_dict())
    if tower is not None:
        parts[compvis.TEXT] = {
            name: value.clone()
            for name, value in tower.model.state_dict().items()
            if not name.startswith("visual.")
        }
    folder.mkdir(parents=True, exist_ok=True)
    whole = {prefix + name: v for prefix, part in parts.items() for name, v in part.items()}
    save_file(whole, folder / "model.safetensors")


def write_pipeline(
    folder: Path,
    network: nn.Module,
    *,
    first: FirstStage,
    tower: Tower | None,
    described: Described,
    size: int,
) -> str:
    """The pipeline that fits the network; returns its class's name.

    ValueError where there is none, naming those that there are.
    """
    match network:
        case UNet() if tower is not None:
            write_stable_diffusion(
                folder, network, first=first, tower=tower, described=described, size=size
            )
            return "StableDiffusionPipeline"
        case DiT() if network.classes:
            write_dit(folder, network, first=first, described=described, size=size)
            return "DiTPipeline"
        case MMDiT():
            raise ValueError(
                "StableDiffusion3Pipeline conditions on two CLIP encoders and a T5, and this MMDiT "
                "on another text encoder: export its parts with --to safetensors"
            )
    raise ValueError(
        f"diffusers has no pipeline for {type(network).__name__} with this conditioning: there is "
        "StableDiffusionPipeline for a UNet with an open_clip text encoder, and DiTPipeline for a "
        "DiT of classes; --to safetensors exports any network"
    )
