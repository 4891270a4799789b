"""A second stage with fresh weights, for tests of commands."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from ldm.commands.building import build
from ldm.commands.choices import choice
from ldm.commands.composing import composed
from ldm.commands.trained import TrainedDiffusion
from ldm.frozen import LatentCodec, LatentStatistics, fingerprint
from ldm.frozen.captions import OpenClipCaptions
from ldm.frozen.clip import load_clip
from ldm.runs.checkpoints import Checkpoint
from ldm.runs.folder import RunFolder


def untrained():
    """Every part of a second stage, with fresh weights, as `load_diffusion` gives them."""
    torch.manual_seed(0)
    autoencoder = build(choice("autoencoder", "tiny"), "autoencoder")
    channels, factor = autoencoder.latent_channels, autoencoder.factor
    statistics = LatentStatistics(
        (0.0,) * channels, (1.0,) * channels, factor, fingerprint(autoencoder)
    )
    config = OmegaConf.create(
        {
            "data": composed(["experiment=emoji/diffusion"]).data,
            "image_size": 32,
            "precision": "32-true",
            "evaluation": {"clip": "asset:emoji_clip", "guidance": 2.0},
            "sampler": choice("sampler", "euler"),
            "diffusion": composed(["experiment=emoji/diffusion"]).diffusion,
            "backbone": choice("backbone", "unet_tiny"),
            "latent": {"channels": channels, "size": 32 // factor},
            "text": choice("text", "emoji_clip"),
        }
    )
    captions = OpenClipCaptions(load_clip("asset:emoji_clip"))
    config.text.width, config.text.pooled_width = captions.width, captions.pooled_width
    config.sampler.steps = 2
    OmegaConf.resolve(config)
    network = build(config.backbone, "backbone").eval()
    denoiser = build(config.diffusion, "diffusion").denoiser(network)
    return TrainedDiffusion(
        RunFolder(Path("untrained")),
        config,
        Checkpoint(Path("untrained/step-0"), 0),
        denoiser,
        LatentCodec(autoencoder, statistics),
        captions,
    )
