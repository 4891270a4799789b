"""Run folders as trainings leave them, with small networks that nobody has trained."""

import json
import time
from pathlib import Path

import torch
import yaml
from omegaconf import OmegaConf

from ldm.commands.building import build
from ldm.commands.composing import composed
from ldm.frozen import LatentStatistics, fingerprint
from ldm.runs.checkpoints import STATE, write_checkpoint

SIZE = 16


def first_stage(root: Path) -> Path:
    run = root / "first"
    wanted = f"experiment=emoji/autoencoder autoencoder=tiny image_size={SIZE} name=first"
    config = composed([*wanted.split(), f"run_root={root}"])
    torch.manual_seed(0)
    autoencoder = build(config.autoencoder, "autoencoder")
    channels = autoencoder.latent_channels
    _leave(run, config, {1: autoencoder})
    statistics = LatentStatistics(
        (0.0,) * channels, (1.0,) * channels, autoencoder.factor, fingerprint(autoencoder)
    )
    statistics.save(run / "latents.json")
    return run


def second_stage(root: Path, steps=(1, 2)) -> Path:
    """After `first_stage`; each of its checkpoints has weights of its own."""
    run = root / "second"
    wanted = "experiment=emoji/diffusion backbone=unet_tiny name=second sampler.steps=3"
    config = composed(
        [
            *wanted.split(),
            f"image_size={SIZE}",
            f"run_root={root}",
            f"first_stage={root / 'first'}",
            f"latent={{channels: 4, size: {SIZE // 8}}}",
            "text.width=64",
            "text.pooled_width=64",
        ]
    )
    networks = {}
    for step in steps:
        torch.manual_seed(step)
        networks[step] = build(config.backbone, "backbone")
        for parameter in networks[step].parameters():  # its last layer begins at 0
            torch.nn.init.normal_(parameter, std=0.1)
    _leave(run, config, networks)
    return run


def _leave(run, config, networks):
    run.mkdir(parents=True)
    plain = OmegaConf.to_container(config, resolve=True)
    (run / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    for step, network in networks.items():
        state = {f"average.{k}": v for k, v in network.state_dict().items()}
        write_checkpoint(
            run / "checkpoints", step, lambda d, s=state: torch.save({"state_dict": s}, d / STATE)
        )
    record = {"state": "finished", "pid": 1, "host": "h", "began": time.time(), "facts": {}}
    (run / "state.json").write_text(json.dumps(record))
