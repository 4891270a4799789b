"""`ldm import`: weights of other tools as parts that a training here starts from."""

import argparse
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.commands.options import refuse_below

FAMILIES = ("dit", "sit")


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("import", help="weights of other tools, to start from")
    parser.add_argument(
        "source",
        help="a folder that diffusers saved (a pipeline or one model), or a checkpoint of "
        "CompVis, Stability, DiT, SiT or LightningDiT (.safetensors, .ckpt, .pt)",
    )
    parser.add_argument("out", help="the folder to write; it must not exist yet")
    parser.add_argument(
        "--scale",
        help="what latents are multiplied with: a number, or the published autoencoder whose "
        "it is, as sdxl or flux (default: as the source says; a CompVis checkpoint does not, and "
        "is taken for sd)",
    )
    parser.add_argument("--image-size", type=int, default=512, help="(default: 512)")
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        default="dit",
        help="whose a checkpoint with DiT's names is, since SiT has the same (default: dit)",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write, where the source has them: OUT/first_stage (for `first_stage=`), OUT/backbone (OUT is
    for `backbone.init=`; its backbone.yaml for conf/backbone), OUT/diffusion.yaml and OUT/text.yaml
    (for conf/diffusion and conf/text)."""
    refuse_below(arguments, 1, "image_size")
    source, out = Path(arguments.source), Path(arguments.out)
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not, or remove it")
    if not source.exists():
        raise FileNotFoundError(
            f"{source}: no such file or folder; names on the hub are not fetched, so download it "
            "(of a pipeline model_index.json and the folders beside it, each with its config.json "
            "and .safetensors; of another project one file) and name the place"
        )
    found = _parts(source, arguments)
    if not found:
        raise ValueError(f"{source} holds neither an autoencoder nor a network that is known here")
    try:
        for write in found.values():
            write(out)
    except BaseException:  # half of a folder looks like a whole one
        shutil.rmtree(out, ignore_errors=True)
        raise
    for part in found:
        print(f"wrote {out / part}")
    return 0


def _parts(source: Path, arguments: argparse.Namespace) -> dict[str, Callable[[Path], None]]:
    """What the source holds, by the name under which it is written. All is read before anything is
    written."""
    from ldm.interop.reading import read_autoencoder, read_described, read_network
    from ldm.interop.text_reading import text_node

    parts: dict[str, Callable[[Path], None]] = {}
    described = read_described(source) if source.is_dir() else None
    if source.is_dir() and (source / "scheduler_config.json").is_file():
        return {"diffusion.yaml": lambda out: _write_diffusion(out, described)}
    network = read_network(source, arguments.family)
    first = read_autoencoder(source)
    if network is not None:
        parts["backbone"] = lambda out: _write_backbone(out, network)
    if first is not None:
        if arguments.scale is not None:
            first = _scaled(first, arguments.scale)
        parts["first_stage"] = lambda out: _write_first_stage(out, first, arguments.image_size)
    if described is not None:
        parts["diffusion.yaml"] = lambda out: _write_diffusion(out, described)
    if network is not None and _has_text(source):
        parts["text.yaml"] = lambda out: _write_text(out, text_node(source, out))
    return parts


def _scaled(first: Any, wish: str) -> Any:
    """The first stage with a published one's shift and scale, or with a number as its scale."""
    from ldm.frozen import PUBLISHED

    if (known := PUBLISHED.get(wish)) is not None:
        network = first.autoencoder
        has, wanted = (network.latent_channels, network.factor), (known.channels, known.factor)
        if has != wanted:
            raise ValueError(
                f"--scale {wish}: that autoencoder has {wanted[0]} latent channels at "
                f"1/{wanted[1]} of the size, the source's has {has[0]} at 1/{has[1]}: name its own"
            )
        return replace(first, mean=known.mean[0], std=known.std[0])
    try:
        scale = float(wish)
    except ValueError:
        scale = 0.0
    if not 0 < scale < math.inf:
        raise ValueError(f"--scale {wish}: give a number above 0, or one of {', '.join(PUBLISHED)}")
    return replace(first, std=1 / scale)


def _has_text(source: Path) -> bool:
    if source.is_dir():
        return (source / "model_index.json").is_file()
    from ldm.interop.files import read_weights

    return any(n.startswith(("cond_stage_model.", "conditioner.")) for n in read_weights(source))


def _write_backbone(out: Path, found: Any) -> None:
    from ldm.tensor_files import write_tensors

    folder = out / "backbone"
    folder.mkdir(parents=True)
    _write_yaml(folder / "backbone.yaml", found.node)
    write_tensors(folder / "model.safetensors", found.network.state_dict())


def _write_first_stage(out: Path, found: Any, size: int) -> None:
    """A folder like that of a finished autoencoder run, so that `first_stage=` takes it."""
    import torch

    from ldm.frozen import LatentStatistics, fingerprint
    from ldm.runs.checkpoints import STATE, write_checkpoint

    folder = out / "first_stage"
    folder.mkdir(parents=True)
    config = {
        "name": out.name,
        "stage_name": "autoencoder",
        "image_size": size,
        "autoencoder": found.node,
    }
    _write_yaml(folder / "config.yaml", config)
    weights = found.autoencoder.state_dict()
    state = {f"average.{name}": value for name, value in weights.items()}
    write_checkpoint(
        folder / "checkpoints", 0, lambda draft: torch.save({"state_dict": state}, draft / STATE)
    )
    channels = found.autoencoder.latent_channels
    LatentStatistics(
        mean=(found.mean,) * channels,
        std=(found.std,) * channels,
        factor=found.autoencoder.factor,
        fingerprint=fingerprint(found.autoencoder),
    ).save(folder / "latents.json")


def _write_text(out: Path, node: Any) -> None:
    """The text encoders as a file for conf/text."""
    _write_yaml(out / "text.yaml", {"width": None, "pooled_width": None, "encoder": node})


def _write_diffusion(out: Path, described: Any) -> None:
    """The schedule and target as a file for conf/diffusion; times are drawn evenly."""
    import dataclasses

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
    _write_yaml(out / "diffusion.yaml", content)


def _write_yaml(path: Path, content: Any) -> None:
    import yaml

    from ldm.files import write_text

    write_text(path, yaml.safe_dump(content, sort_keys=False))
