"""The generator of pictures that a run's configuration and the options of a command describe."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.commands.building import build
from ldm.commands.choices import choice, sampler_node
from ldm.commands.options import Asked
from ldm.commands.parts import autocast_dtype
from ldm.commands.trained import TrainedDiffusion, load_diffusion
from ldm.diffusion import Denoiser, Guidance, Sampler
from ldm.frozen.spatial import BroughtBeside
from ldm.generate import TextToImage
from ldm.runs.checkpoints import run_named
from ldm.runs.folder import RunFolder


def text_to_image(
    trained: TrainedDiffusion, arguments: argparse.Namespace
) -> tuple[TextToImage, dict[str, Any]]:
    """The generator that the options ask for, and the settings as they go into each PNG.
    ValueError names the option that cannot be."""
    asked, config = Asked.of(arguments), trained.config
    device = device_of(asked.device)
    scale = config.evaluation.guidance if asked.guidance is None else asked.guidance
    sampler, sampler_settings = _sampler(config, asked)
    manner, manner_settings = _manner(trained, asked, scale)
    generate = _assembled(trained, sampler, scale, manner, device)
    settings = {
        "negative": asked.negative,
        "checkpoint": f"{trained.folder.path.name}/{trained.checkpoint.path.name}",
        "sampler": sampler_settings,
        "guidance": scale,
        "manner": manner_settings,
        "config": OmegaConf.to_yaml(config),
    }
    return generate, settings


def as_trained(trained: TrainedDiffusion, device: torch.device) -> TextToImage:
    """The generator that draws as the run's own samples are drawn."""
    config = trained.config
    sampler: Sampler = build(config.sampler, "sampler")
    manner: Guidance = build(manner_of(config), "guidance")
    return _assembled(trained, sampler, config.evaluation.guidance, manner, device)


def _assembled(
    trained: TrainedDiffusion,
    sampler: Sampler,
    scale: float,
    manner: Guidance,
    device: torch.device,
) -> TextToImage:
    config = trained.config
    network: Any = trained.denoiser.network  # type: ignore[attr-defined]
    network.to(device)
    trained.codec.to(device)
    trained.captions.to(device)
    return TextToImage(
        trained.denoiser,
        sampler,
        trained.codec,
        trained.captions,
        config.image_size,
        scale,
        autocast_dtype(config.precision),
        manner,
        beside_of(config),
    )


def device_of(name: str | None) -> torch.device:
    """The one that is named, else this process's GPU, else the CPU."""
    if name is not None:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            said = str(error).splitlines()[0]
            raise ValueError(
                f"--device {name}: not there ({said}); leave it out, or set cpu"
            ) from None
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())


def beside_of(config: DictConfig) -> BroughtBeside | None:
    """What the run's network was told of pictures while it was trained; None for nothing."""
    key = "module.conditioning.spatial"
    node = OmegaConf.select(config, key)
    return None if node is None else build(node, key)


def manner_of(config: DictConfig) -> DictConfig:
    """A run's node `guidance`; runs from before there was one have the plain manner."""
    found: Any = config.get("guidance")
    return choice("guidance", "classifier_free") if found is None else found.copy()


def weaker_denoiser(run: str, device: str | None = None) -> Denoiser:
    """The averaged network of another run, or of one of its checkpoints, for autoguidance:
    `guidance.weaker={_target_: ldm.commands.drawing.weaker_denoiser, run: RUN}`."""
    denoiser: Any = load_diffusion(run).denoiser
    denoiser.network.to(device_of(device))
    return denoiser


def _sampler(config: DictConfig, asked: Asked) -> tuple[Sampler, Any]:
    if asked.passes is not None and asked.steps is not None:
        raise ValueError(
            f"--steps {asked.steps} and --passes {asked.passes}: passes decide the steps; give one"
        )
    node = sampler_node(config.sampler, asked.sampler, asked.steps, asked.grid)
    if asked.eta is not None:
        if "eta" not in node:
            raise ValueError(
                f"--eta {asked.eta}: {node._target_} adds no fresh noise; take --eta away, or name "
                "--sampler ddim or dpmpp_2m"
            )
        node.eta = asked.eta
    node = _with(node, "sampler", asked)
    sampler: Sampler = build(node, "sampler")
    if asked.passes is not None:
        sampler = sampler.within(asked.passes)
        node.steps = sampler.steps
    return sampler, OmegaConf.to_container(node, resolve=True)


def _manner(trained: TrainedDiffusion, asked: Asked, scale: float) -> tuple[Guidance, Any]:
    if not scale >= 0:
        raise ValueError(
            f"--guidance {scale}: guidance pushes towards the prompt; give 1 for none, 2 ... 10 "
            "for more"
        )
    node: Any = manner_of(trained.config)
    if asked.guidance_kind is not None:
        node = choice("guidance", asked.guidance_kind)
    if asked.guidance_rescale is not None:
        node.push = {"_target_": "ldm.diffusion.Rescaled", "share": asked.guidance_rescale}
    if asked.guidance_interval is not None:
        node.low, node.high = _interval(asked.guidance_interval)
    if asked.thresholding is not None:
        node.limit = asked.thresholding
    if asked.autoguidance is not None:
        _refuse_other_parts(trained, asked.autoguidance)
        call = f"{weaker_denoiser.__module__}.{weaker_denoiser.__name__}"
        node.weaker = {"_target_": call, "run": asked.autoguidance, "device": asked.device}
    node = _with(node, "guidance", asked)
    manner: Guidance = build(node, "guidance")
    return manner, OmegaConf.to_container(node, resolve=True)


def _with(node: DictConfig, name: str, asked: Asked) -> DictConfig:
    """The node with those of --set that are about it."""
    for setting in asked.overrides:
        key, equals, _ = setting.partition("=")
        if not equals or not key.startswith(("sampler.", "guidance.")):
            raise ValueError(
                f"--set {setting}: write sampler.KEY=VALUE or guidance.KEY=VALUE, such as "
                "sampler.grid.rho=5"
            )
    mine = [s.removeprefix(f"{name}.") for s in asked.overrides if s.startswith(f"{name}.")]
    merged: Any = OmegaConf.merge(node, OmegaConf.from_dotlist(mine))
    return merged


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--guidance-interval {text}: write LOW,HIGH with times in [0, 1], such as 0.2,0.85"
        ) from None
    return low, high


def _refuse_other_parts(trained: TrainedDiffusion, target: str) -> None:
    """The two networks must see the same latents and words."""
    other = OmegaConf.create(RunFolder(run_named(Path(target))).config())
    for key in ("latent", "text", "image_size"):
        if trained.config[key] != other[key]:
            raise ValueError(
                f"--autoguidance {target}: its {key} is {other[key]}, the run's "
                f"{trained.config[key]}; name a run in the same latents and with the same texts"
            )
