"""What a training would be: its parts built on the meta device, where nothing takes memory."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from ldm.commands.building import build
from ldm.commands.check import devices_of
from ldm.commands.first_stage import first_stage_lacks, load_codec
from ldm.commands.metric_choices import MetricChoices, References, data_of, named_references
from ldm.commands.parts import (
    agree,
    learns_variance,
    precision_of,
    widen,
)
from ldm.commands.picture_sizes import refuse_pictures
from ldm.commands.placement import lacking
from ldm.commands.resuming import refuse_other_data
from ldm.commands.stale import refuse_to_continue
from ldm.commands.text import refuse_unheard_sizes, text_encoder
from ldm.commands.weights import refuse_missing
from ldm.diffusion import Objective, Sampler
from ldm.frozen.features import clip_features
from ldm.models import Autoencoder
from ldm.runs.folder import RunFolder, refuse_other_settings, run_folder
from ldm.types import Condition, draws_for_seeds

TOKENS = 8  # of the text in the trial pass; no backbone asks for a number of them


def plan(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Lines (name, value), and the same refusals as a training's. What is not there yet, a first
    stage or the data, is a line `first`: what to do before."""
    folder = run_folder(config.run_root, config.name)
    yield (
        "run",
        f"{folder.path}" + ("  (there already: it would continue)" if folder.path.exists() else ""),
    )
    yield "stage", config.stage_name
    todo: list[str] = []
    if config.stage_name == "diffusion":
        yield from _diffusion(config, todo)
    elif config.stage_name == "autoencoder":
        yield from _autoencoder(config)
    else:
        with torch.device("meta"):
            yield "clip", _size(build(config.clip, "clip").model)
    _try_optimizer(config)
    if not todo:  # else its sizes are not known yet
        yield from _changes(config, folder)
    yield from _steps(config, todo, _width(config), folder)
    if lacks := lacking(config):
        todo.append(f"a machine that has it: {lacks}")
    for line in todo:
        yield "first", line


def _width(config: DictConfig) -> int | None:
    """Of the features that samples are compared through; ValueError where `evaluation` names
    weights or statistics that are not there."""
    evaluation = config.evaluation
    if OmegaConf.select(evaluation, "metrics") is None:
        return None
    splits = data_of(config)  # opened by nobody here
    references = References(splits, named_references(evaluation.reference), torch.device("cpu"))
    MetricChoices(
        evaluation.metrics,
        references,
        clip=evaluation.clip,
        pairs=config.stage_name == "autoencoder",
        key="evaluation.metrics",
    )
    return clip_features(evaluation.clip).width


def fit(config: DictConfig) -> None:
    """The second stage's parts, tried on each other on the meta device: ValueError names the key of
    the one that does not fit. `latent` and `text` must be known."""
    for argument, key in (
        ("in_channels", "latent.channels"),
        ("text_width", "text.width"),
        ("pooled_width", "text.pooled_width"),
    ):
        asked, found = config.backbone.get(argument), OmegaConf.select(config, key)
        ignored = argument == "pooled_width" and asked == 0
        if asked is not None and asked != found and not ignored:
            raise ValueError(
                f"backbone.{argument}={asked}, but {key} is {found}; set "
                f"backbone.{argument}='${{{key}}}', or change what gives {key}"
            )
    refuse_missing(config.backbone, "backbone")
    with torch.device("meta"):
        network: nn.Module = build(config.backbone, "backbone")
    x = torch.empty(
        2, config.latent.channels, config.latent.size, config.latent.size, device="meta"
    )
    condition = Condition(
        torch.empty(2, TOKENS, config.text.width, device="meta"),
        torch.ones(2, TOKENS, dtype=torch.bool, device="meta"),
        torch.empty(2, config.text.pooled_width, device="meta")
        if config.text.pooled_width
        else None,
    )
    try:
        shape = network(x, torch.empty(2, device="meta"), condition).shape
    except (ValueError, RuntimeError) as error:
        size = config.latent.size
        raise ValueError(
            f"backbone: does not take latents of {config.latent.channels}x{size}x{size} "
            f"with texts of width {config.text.width} ({' '.join(str(error).split())}); "
            "set another backbone, or an image_size that fits"
        ) from error
    learned = learns_variance(config)
    wanted = config.latent.channels * (2 if learned else 1)
    if shape != (x.shape[0], wanted, *x.shape[2:]):
        told = " (diffusion.variance is learned too)" if learned else ""
        raise ValueError(
            f"backbone: makes {list(shape[1:])} of latents {list(x.shape[1:])}{told}; set "
            f"backbone.out_channels={wanted}"
        )
    fit_sampler(config)


def fit_sampler(config: DictConfig) -> None:
    """The sampler, walked over the objective's schedule on one number, must end in a number; and
    the manner of guidance must be one."""
    objective: Objective = build(config.diffusion, "diffusion")
    sampler: Sampler = build(config.sampler, "sampler")
    build(config.guidance, "guidance")
    noise = torch.full((1, 1, 1, 1), 0.7)
    condition = Condition(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    try:
        made = sampler(
            objective.denoiser(_Nothing(objective.variance is not None)),
            noise,
            condition,
            draws_for_seeds([0], noise.device),
        )
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"sampler: cannot walk this schedule ({error}); set another sampler or diffusion"
        ) from error
    if not made.isfinite().all():
        raise ValueError(
            "sampler: leads to infinite numbers on this diffusion.schedule; set another sampler or "
            "diffusion"
        )


class _Nothing(nn.Module):
    """A network that predicts zeros, for the variance too where that is learned."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.times = 2 if learned else 1

    def forward(self, x_t: Any, t: Any, condition: Condition) -> Any:
        return torch.zeros_like(x_t).repeat(1, self.times, 1, 1)


def _autoencoder(config: DictConfig) -> Iterator[tuple[str, str]]:
    refuse_missing(config.autoencoder, "autoencoder")
    with torch.device("meta"):
        autoencoder: Autoencoder = build(config.autoencoder, "autoencoder")
        extras = [build(config.module[k], f"module.{k}") for k in ("critic",) if config.module[k]]
    refuse_pictures(config, autoencoder, [])
    size = config.image_size
    side = size // autoencoder.factor
    yield "network", _size(autoencoder)
    for critic in extras:
        yield "critic", _size(critic)
    pixels, cells = 3 * size * size, autoencoder.latent_channels * side * side
    yield (
        "latents",
        f"{autoencoder.latent_channels}x{side}x{side}, "
        f"{pixels / cells:.0f} times fewer numbers than pixels",
    )


def _diffusion(config: DictConfig, todo: list[str]) -> Iterator[tuple[str, str]]:
    shape = _latent_shape(config, todo)
    refuse_unheard_sizes(config)
    widths = _text_widths(config, todo)
    with open_dict(config):
        if shape is not None:
            agree("latent.channels", config.latent.channels, shape[0], "the first stage")
            agree("latent.size", config.latent.size, shape[1], "the first stage")
            config.latent = {"channels": shape[0], "size": shape[1]}
        for key, found in widths.items():
            agree(f"text.{key}", config.text[key], found, "the text encoder")
            config.text[key] = found
    build(config.diffusion, "diffusion")
    if config.latent.channels is None or config.latent.size is None:
        yield "latents", "not known before the first stage is trained; the backbone was not tried"
        fit_sampler(config)
        return
    if config.text.width is None or config.text.pooled_width is None:
        yield "text", "not known before its encoder is there; the backbone was not tried"
        fit_sampler(config)
        return
    yield "latents", f"{config.latent.channels}x{config.latent.size}x{config.latent.size}"
    widen(config)
    fit(config)
    with torch.device("meta"):
        yield "network", _size(build(config.backbone, "backbone"))


def _text_widths(config: DictConfig, todo: list[str]) -> dict[str, int]:
    """Of the text encoder; empty, with a line of what to do, where its files are not there."""
    try:
        captions = text_encoder(config)
    except FileNotFoundError as error:
        todo.append(str(error))
        return {}
    return {"width": captions.width, "pooled_width": captions.pooled_width}


def _latent_shape(config: DictConfig, todo: list[str]) -> tuple[int, int] | None:
    if lacking := first_stage_lacks(config.first_stage):
        todo.append(lacking)
        return None
    codec = load_codec(config.first_stage)
    refuse_to_continue(config, codec.statistics)
    shape = codec.latent_shape(config.image_size)
    return shape[0], shape[1]


def _try_optimizer(config: DictConfig) -> None:
    """On one weight: their constructors refuse what does not work."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = build(config.module.optimizer, "module.optimizer")([weight])
    build(config.module.lr_schedule, "module.lr_schedule")(optimizer)


def _changes(config: DictConfig, folder: RunFolder) -> Iterator[tuple[str, str]]:
    """What differs from the run that is there already."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    settings["precision"] = precision_of(config.precision)
    for line in refuse_other_settings(folder, settings):
        yield "changed", line


def _steps(
    config: DictConfig, todo: list[str], width: int | None, folder: RunFolder
) -> Iterator[tuple[str, str]]:
    steps, batch = config.trainer.max_steps, config.global_batch
    seen = steps * batch
    try:
        train, val = (build(config.data[split], f"data.{split}") for split in ("train", "val"))
        yield (
            "data",
            f"{len(train)} pictures to train, {len(val)} to validate: "
            f"{seen / len(train):.1f} epochs",
        )
        hashes = {"train": train.content_hash, "val": val.content_hash}
        for line in refuse_other_data(config, folder, hashes):
            yield "changed", line
        yield from _validation(config, len(val), width)
    except FileNotFoundError as error:
        todo.append(f"make the data: {error}")
    yield "steps", f"{steps} of {batch} pictures, {seen:,} pictures in all"
    devices = devices_of(config.trainer)
    per_device = batch // devices // config.accumulate
    yield "batch", f"{batch} = {devices} devices x {per_device} x {config.accumulate} turns"
    yield "precision", precision_of(config.precision)
    saved = math.ceil(steps / config.checkpoint.every)
    yield "saves", f"{saved} checkpoints, every {config.checkpoint.every} steps"
    yield "looks", f"every {config.evaluation.every} steps"


def _validation(config: DictConfig, count: int, width: int | None) -> Iterator[tuple[str, str]]:
    """What can be measured with so many pictures."""
    prompts = OmegaConf.select(config, "evaluation.prompts")
    if prompts is None or width is None:
        return
    if prompts > count:
        yield "note", f"evaluation.prompts={prompts}, but there are {count} captions: all are used"
    if min(prompts, count) <= width:
        yield (
            "note",
            f"{min(prompts, count)} samples against {width} features: the Fréchet distance is "
            f"biased upwards; compare only runs with equal evaluation.prompts",
        )


def _size(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.2f} M parameters, {4 * count / 1e6:.0f} MB in float32"
