"""`ldm import`: weights of other tools as parts that a training here starts from."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIFFUSERS_PARTS = ("unet", "transformer", "vae", "scheduler")


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("import", help="weights of other tools, to start from")
    parser.add_argument(
        "source",
        help="a folder that diffusers saved (a pipeline or one model), or a checkpoint of "
        "CompVis or Stability (.safetensors, .ckpt)",
    )
    parser.add_argument("out", help="the folder to write; it must not exist yet")
    parser.add_argument(
        "--scale",
        type=float,
        default=0.18215,
        help="what a CompVis checkpoint multiplies latents with (default: SD 1 and 2's 0.18215)",
    )
    parser.add_argument("--image-size", type=int, default=512, help="(default: 512)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write OUT/first_stage (for `first_stage=`), OUT/backbone (its model.safetensors for
    `backbone.init=`, its backbone.yaml for conf/backbone) and OUT/diffusion.yaml, where the source
    has them."""
    source, out = Path(arguments.source), Path(arguments.out)
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not, or remove it")
    if not source.exists():
        raise FileNotFoundError(
            f"{source}: no such file or folder; names on the hub are not fetched, so download it "
            "and name the folder"
        )
    found = _folder(source, arguments) if source.is_dir() else _checkpoint(source, arguments)
    if not found:
        raise ValueError(f"{source} holds neither an autoencoder nor a network that is known here")
    for part, write in found.items():
        write(out)
        print(f"wrote {out / part}")
    return 0


def _folder(source: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from ldm.interop.files import read_config

    if (source / "model_index.json").is_file():
        kind = read_config(source, "model_index.json").get("_class_name", "")
        known = ("StableDiffusion", "DiTPipeline")
        if not kind.startswith(known):
            raise ValueError(
                f"{source}: {kind} is not known here; known are StableDiffusionPipeline, "
                "StableDiffusionXLPipeline, StableDiffusion3Pipeline, DiTPipeline, and single "
                "models: UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel, "
                "AutoencoderKL"
            )
        folders = [source / part for part in DIFFUSERS_PARTS if (source / part).is_dir()]
    else:
        folders = [source]
    parts: dict[str, Any] = {}
    for folder in folders:
        parts |= _model(folder, arguments)
    return parts


def _model(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from ldm.interop.autoencoder import (
        autoencoder_arguments,
        autoencoder_table,
        latent_scale,
        with_new_attention_names,
    )
    from ldm.interop.files import read_config, read_folder_weights
    from ldm.interop.networks import network_from_diffusers
    from ldm.interop.schedulers import described_by
    from ldm.models import KLAutoencoder

    if (folder / "scheduler_config.json").is_file():
        described = described_by(read_config(folder, "scheduler_config.json"))
        return {"diffusion.yaml": lambda out: _write_diffusion(out, described)}
    config = read_config(folder)
    state = read_folder_weights(folder)
    if config.get("_class_name") == "AutoencoderKL":
        shape = autoencoder_arguments(config)
        network = KLAutoencoder(**shape)
        table = autoencoder_table(network)
        network.load_state_dict(table.take(with_new_attention_names(state), str(folder)))
        mean, std = latent_scale(config)
        return {
            "first_stage": lambda out: _write_first_stage(
                out, network, shape, (mean, std), arguments.image_size
            )
        }
    made = network_from_diffusers(config, state, str(folder))
    return {"backbone": lambda out: _write_backbone(out, *made)}


def _checkpoint(source: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from ldm.interop.autoencoder import compvis_autoencoder_table
    from ldm.interop.compvis import (
        FIRST_STAGE,
        UNET,
        autoencoder_arguments_of,
        part,
        projects_by_convolutions,
        unet_arguments_of,
    )
    from ldm.interop.files import read_weights
    from ldm.interop.unet import COMPVIS, unet_table
    from ldm.models import KLAutoencoder, UNet

    whole = read_weights(source)
    parts: dict[str, Any] = {}
    unet = part(whole, UNET)
    if "input_blocks.0.0.weight" in unet:
        shape = unet_arguments_of(unet)
        network = UNet(**shape)
        table = unet_table(network, COMPVIS, convolutions=projects_by_convolutions(unet))
        network.load_state_dict(table.take(unet, str(source)))
        parts["backbone"] = lambda out: _write_backbone(out, network, shape)
    first = part(whole, FIRST_STAGE)
    if "encoder.conv_in.weight" in first:
        first = {n: v for n, v in first.items() if not n.startswith(("loss.", "model_ema."))}
        stage = autoencoder_arguments_of(first)
        autoencoder = KLAutoencoder(**stage)
        autoencoder.load_state_dict(compvis_autoencoder_table(autoencoder).take(first, str(source)))
        scale = (0.0, 1 / arguments.scale)
        parts["first_stage"] = lambda out: _write_first_stage(
            out, autoencoder, stage, scale, arguments.image_size
        )
    return parts


def _write_backbone(out: Path, network: Any, shape: Mapping[str, Any]) -> None:
    import yaml
    from safetensors.torch import save_file

    folder = out / "backbone"
    folder.mkdir(parents=True)
    node = {"_target_": f"ldm.models.{type(network).__name__}", **shape}
    (folder / "backbone.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    save_file(
        {n: v.contiguous() for n, v in network.state_dict().items()}, folder / "model.safetensors"
    )


def _write_first_stage(
    out: Path, network: Any, shape: Mapping[str, Any], scale: tuple[float, float], size: int
) -> None:
    """A folder like that of a finished autoencoder run, so that `first_stage=` takes it."""
    import torch
    import yaml

    from ldm.frozen import LatentStatistics, fingerprint
    from ldm.runs.checkpoints import STATE, write_checkpoint

    folder = out / "first_stage"
    folder.mkdir(parents=True)
    config = {
        "name": out.name,
        "stage_name": "autoencoder",
        "image_size": size,
        "autoencoder": {"_target_": "ldm.models.KLAutoencoder", **shape},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    state = {f"average.{name}": value for name, value in network.state_dict().items()}
    write_checkpoint(
        folder / "checkpoints", 0, lambda draft: torch.save({"state_dict": state}, draft / STATE)
    )
    mean, std = scale
    channels = network.latent_channels
    LatentStatistics(
        mean=(mean,) * channels,
        std=(std,) * channels,
        factor=network.factor,
        fingerprint=fingerprint(network),
    ).save(folder / "latents.json")


def _write_diffusion(out: Path, described: Any) -> None:
    """The schedule and target as a file for conf/diffusion; times are drawn evenly."""
    import dataclasses

    import yaml

    def node(value: Any) -> dict[str, Any]:
        name = f"ldm.diffusion.{type(value).__name__}"
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        inner = {
            key: node(item) if dataclasses.is_dataclass(item) else item
            for key, item in fields.items()
        }
        return {"_target_": name, **inner}

    content = {
        "_target_": "ldm.diffusion.Objective",
        "schedule": node(described.schedule),
        "target": node(described.target),
        "times": {"_target_": "ldm.diffusion.Uniform"},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "diffusion.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
