"""`ldm evaluate` of a first stage: its reconstructions of the validation pictures."""

import argparse
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ldm.commands.first_stage import load_autoencoder
from ldm.commands.judging import Ranks, ready
from ldm.commands.metric_choices import MetricChoices, References, data_of, named_references
from ldm.commands.weights import newest
from ldm.data import all_pictures, valid_pictures
from ldm.metrics import MetricGroup
from ldm.runs.checkpoints import checkpoint_named, run_named
from ldm.runs.folder import RunFolder

DEFAULT = "psnr,ssim,fd_clip"


def reconstruction_row(
    arguments: argparse.Namespace, target: Path, device: torch.device, ranks: Ranks
) -> dict[str, Any]:
    """Each metric's value over all validation pictures, which the ranks share."""
    folder = RunFolder(run_named(target))
    config = OmegaConf.create(folder.config())
    if config.stage_name != "autoencoder":
        raise ValueError(
            f"{target} holds a run of stage {config.stage_name!r}, which makes no pictures: name "
            "one of stage autoencoder or diffusion"
        )
    checkpoint = checkpoint_named(target) or newest(folder)
    data = data_of(config)
    references = References(data, named_references(arguments.reference), device)
    clip = arguments.clip or config.evaluation.clip
    choices = MetricChoices(_asked(arguments.metrics), references, clip=clip, pairs=True)
    autoencoder = load_autoencoder(config, checkpoint).to(device).eval()
    of_pictures = ready(MetricGroup(choices.makers()), device)
    of_pairs = ready(MetricGroup(choices.makers(of_pairs=True)), device)
    pictures = data["val"]()
    shares = all_pictures(
        pictures, device=device, rank=ranks.rank, world=ranks.world, batch=arguments.batch_size
    )
    for images in valid_pictures(shares):
        with torch.no_grad():
            latent = autoencoder.encode(images).mean
            made = autoencoder.decode(latent).float().clamp(-1, 1)
        of_pictures.update(made, [""] * len(made))
        of_pairs.update(made, images)
    return {
        "pictures": len(pictures),
        "checkpoint": f"{folder.path.name}/{checkpoint.path.name}",
        "values": {**of_pairs.compute(), **of_pictures.compute()},
        "names": choices.names({**of_pairs.metrics, **of_pictures.metrics}),
    }


def _asked(metrics: str) -> list[str]:
    """What the verb asks by default is for pictures of prompts; reconstructions have their own."""
    from ldm.commands.evaluate import DEFAULT as OF_PROMPTS

    return (DEFAULT if metrics == OF_PROMPTS else metrics).split(",")
