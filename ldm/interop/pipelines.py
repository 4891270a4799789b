"""Whole diffusers pipelines, written as folders that `from_pretrained` loads.

What a pipeline's own code asks of its parts is checked before anything is written: it attends to
padding, it takes the states of fixed layers, and SDXL's tells six sizes behind the pooled text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.interop.dit import diffusers_dit_table, dit_to_diffusers
from ldm.interop.files import write_folder, write_json
from ldm.interop.first_stage import FirstStage, needs_kl, write_first_stage
from ldm.interop.mmdit import mmdit_table, mmdit_to_diffusers
from ldm.interop.schedulers import Described, scheduler_config
from ldm.interop.text import HubText, Text, write_text
from ldm.interop.unet import diffusers_names, unet_table
from ldm.interop.unet_configs import unet_to_diffusers
from ldm.models import DiT, MMDiT, UNet

DIFFUSERS_VERSION = "0.38.0"  # the oldest whose configs these are
SIZES = 6 * 256  # numbers that SDXL's pipeline puts behind the pooled text


@dataclass(frozen=True)
class Parts:
    """What every pipeline is made of: the first stage, the text encoders in order, the schedule and
    the target, and the latents' size."""

    first: FirstStage
    texts: Sequence[Text]
    described: Described
    size: int

    @property
    def pixels(self) -> int:
        """A picture's side."""
        return self.size * self.first.autoencoder.factor


def write_pipeline(folder: Path, network: nn.Module, parts: Parts) -> str:
    """The pipeline that fits the network and its text encoders; returns its class's name.

    ValueError where there is none, or where its code would compute something else; nothing is
    written then.
    """
    match network:
        case UNet() if len(parts.texts) == 1:
            return _write_stable_diffusion(folder, network, parts)
        case UNet() if len(parts.texts) == 2:
            return _write_sdxl(folder, network, parts)
        case DiT() if network.classes:
            return _write_dit(folder, network, parts)
        case MMDiT() if len(parts.texts) == 3:
            return _write_sd3(folder, network, parts)
        case MMDiT():
            raise ValueError(
                "StableDiffusion3Pipeline conditions on two CLIP encoders and a T5 behind them "
                f"(text=sd3), and this MMDiT on {len(parts.texts)} text encoders: export its parts "
                "with --to safetensors"
            )
    raise ValueError(
        f"diffusers has no pipeline for {type(network).__name__} with this conditioning: there is "
        "StableDiffusionPipeline for a UNet with one text encoder, StableDiffusionXLPipeline for "
        "one with two, StableDiffusion3Pipeline for an MMDiT, and DiTPipeline for a DiT of "
        "classes; --to safetensors exports any network"
    )


def _write_stable_diffusion(folder: Path, network: UNet, parts: Parts) -> str:
    name = "StableDiffusionPipeline"
    config = unet_to_diffusers(network, parts.size)
    if network.pooled_width:
        raise ValueError(
            f"{name} gives its U-Net no pooled text, and this one has "
            f"pooled_width={network.pooled_width}: train with backbone.pooled_width=0"
        )
    _refuse_spatial(network, name)
    _expect(parts.texts[0], name, "CLIPTextModel", layer=-1, pooled=False)
    scheduler = scheduler_config(parts.described, joint=False)
    needs_kl(parts.first, name)
    table = unet_table(network, diffusers_names(config), convolutions=False)
    index = _write_parts(
        folder, parts, ("unet", config, table.give(network.state_dict())), projected=[False]
    )
    unused = {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    return _write_index(folder, name, scheduler, index | unused)


def _write_sdxl(folder: Path, network: UNet, parts: Parts) -> str:
    name = "StableDiffusionXLPipeline"
    config = unet_to_diffusers(network, parts.size)
    _refuse_spatial(network, name)
    first, second = parts.texts
    _expect(first, name, "CLIPTextModel", layer=-2, pooled=False)
    _expect(second, name, "CLIPTextModelWithProjection", layer=-2, pooled=True)
    told = second.model.config.projection_dim if isinstance(second, HubText) else 0
    if network.pooled_width != told + SIZES:
        raise ValueError(
            f"{name} tells its U-Net {told} numbers of text and {SIZES} of sizes, and this one "
            f"has pooled_width={network.pooled_width}: train with text=sdxl, which tells them"
        )
    scheduler = scheduler_config(parts.described, joint=False)
    needs_kl(parts.first, name)
    table = unet_table(network, diffusers_names(config), convolutions=False)
    index = _write_parts(
        folder, parts, ("unet", config, table.give(network.state_dict())), projected=[False, True]
    )
    unused = {
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": False,  # guidance leads away from the empty caption
        "add_watermarker": False,
    }
    return _write_index(folder, name, scheduler, index | unused)


def _write_sd3(folder: Path, network: MMDiT, parts: Parts) -> str:
    name = "StableDiffusion3Pipeline"
    config = mmdit_to_diffusers(network, parts.size)
    for text in parts.texts[:2]:
        _expect(text, name, "CLIPTextModelWithProjection", layer=-2, pooled=True)
    _expect(parts.texts[2], name, "T5EncoderModel", layer=-1, pooled=False)
    scheduler = scheduler_config(parts.described, joint=True)
    needs_kl(parts.first, name)
    state = mmdit_table(network, parts.size).give(network.state_dict())
    index = _write_parts(
        folder, parts, ("transformer", config, state), projected=[True, True, False]
    )
    unused = {"image_encoder": [None, None], "feature_extractor": [None, None]}
    return _write_index(folder, name, scheduler, index | unused)


def _write_dit(folder: Path, network: DiT, parts: Parts) -> str:
    name = "DiTPipeline"
    config = dit_to_diffusers(network, parts.size)
    scheduler = scheduler_config(parts.described, joint=False)
    needs_kl(parts.first, name)
    state = diffusers_dit_table(network).give(network.state_dict())
    index = _write_parts(folder, parts, ("transformer", config, state), projected=[])
    return _write_index(folder, name, scheduler, index)


def _refuse_spatial(network: UNet, pipeline: str) -> None:
    if network.spatial:
        raise ValueError(
            f"{pipeline} tells its U-Net of no picture, and this one has backbone.spatial="
            f"{list(network.spatial)}: use --to safetensors"
        )


def _expect(text: Text, pipeline: str, kind: str, *, layer: int, pooled: bool) -> None:
    """ValueError where the pipeline's code would read this encoder in another way."""
    if not isinstance(text, HubText):
        if pipeline != "StableDiffusionPipeline":
            raise ValueError(
                f"{pipeline} reads a layer before the last without its final norm, and open_clip "
                "encoders here are read behind it: take them from transformers' folders"
            )
        return  # a tower is cut where it is read
    wrong = []
    if text.kind != kind:
        wrong.append(f"is a {text.kind}, not a {kind}")
    if text.layer != layer:
        wrong.append(f"tells layer={text.layer}, not {layer}")
    if text.masked:
        wrong.append("is masked=true, not false")
    if text.pooled != pooled:
        wrong.append(f"is {'' if text.pooled else 'not '}pooled=output")
    if wrong:
        raise ValueError(
            f"{pipeline} would read this text encoder otherwise than it was trained with: it "
            f"{', it '.join(wrong)}; use --to safetensors"
        )


def _write_parts(
    folder: Path,
    parts: Parts,
    model: tuple[str, Mapping[str, Any], Mapping[str, Tensor]],
    *,
    projected: Sequence[bool],
) -> dict[str, Any]:
    """Everything but the scheduler, and its lines of the index."""
    name, config, state = model
    index: dict[str, Any] = {"vae": write_first_stage(folder / "vae", parts.first, parts.pixels)}
    write_folder(folder / name, config, state)
    index[name] = ["diffusers", config["_class_name"]]
    for number, (text, whole) in enumerate(
        zip(parts.texts[: len(projected)], projected, strict=True)
    ):
        behind = f"_{number + 1}" if number else ""
        encoder, tokenizer = write_text(folder / f"text_encoder{behind}", text, projected=whole)
        index |= {f"text_encoder{behind}": encoder, f"tokenizer{behind}": tokenizer}
    return index


def _write_index(
    folder: Path, name: str, scheduler: Mapping[str, Any], parts: Mapping[str, Any]
) -> str:
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **parts,
    }
    write_json(folder / "model_index.json", index)
    return name
