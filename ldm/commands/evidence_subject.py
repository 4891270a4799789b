"""What `ldm evidence` looks at: the trained model, held-out pictures, and the CLIP that judges."""

import argparse
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.commands.building import build
from ldm.commands.drawing import text_to_image
from ldm.data import all_pictures
from ldm.frozen.features import clip_features
from ldm.generate import TextToImage
from ldm.metrics import TextAndImageFeatures
from ldm.types import Condition


@dataclass(frozen=True)
class Subject:
    """The run, some of its held-out pictures `[n 3 H W]` with captions, and the judging CLIP."""

    trained: Any
    arguments: argparse.Namespace
    out: Path
    device: torch.device
    data: Any
    images: Tensor
    captions: list[str]
    features: TextAndImageFeatures
    about: dict[str, Any]

    @staticmethod
    def of(
        trained: Any, arguments: argparse.Namespace, out: Path, device: torch.device
    ) -> "Subject":
        """Reads the pictures, evenly spaced over the validation data."""
        data = build(trained.config.data.val, "data.val")
        if len(data) < arguments.samples:
            raise ValueError(
                f"--samples {arguments.samples}: the validation data has {len(data)} pictures; "
                "ask for fewer"
            )
        chosen = [i * len(data) // arguments.samples for i in range(arguments.samples)]
        kept, captions, first = [], [], 0
        for batch in all_pictures(data):
            here = [i - first for i in chosen if first <= i < first + len(batch["image"])]
            kept.append(batch["image"][here])
            captions += [batch["caption"][i] for i in here]
            first += len(batch["image"])
        features = clip_features(arguments.clip or trained.config.evaluation.clip)
        trained.denoiser.network.to(device)
        trained.codec.to(device)
        trained.captions.to(device)
        features.to(device)
        network = trained.denoiser.network
        about = {
            "run": trained.folder.path.name,
            "checkpoint": trained.checkpoint.path.name,
            "network": f"{type(network).__name__}, "
            f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters",
            "held-out pictures": len(chosen),
            "judge of pictures": features.name,
            "command": shlex.join(["ldm", *sys.argv[1:]]),
            "machine": machine(device),
            "software": f"torch {torch.__version__}, Python {platform.python_version()}",
            "date": time.strftime("%Y-%m-%d"),
        }
        return Subject(
            trained,
            arguments,
            out,
            device,
            data,
            torch.cat(kept).to(device),
            captions,
            features,
            about,
        )

    def latents(self, count: int | None = None) -> Tensor:
        """The latents of the first `count` pictures, or of all."""
        parts = torch.split(self.images[:count], self.arguments.batch_size)
        return torch.cat([self.trained.codec.encode(part) for part in parts])

    def draw(self, prompts: list[str], steps: int | None = None, first_seed: int = 0) -> Tensor:
        """One picture a prompt, each with the next seed, with the asked or the run's number of
        steps."""
        asked = argparse.Namespace(**{**vars(self.arguments), "device": str(self.device)})
        asked.steps = steps
        generate: TextToImage = text_to_image(self.trained, asked)[0]
        seeds = range(first_seed, first_seed + len(prompts))
        return torch.cat(list(generate.batches(prompts, seeds, self.arguments.batch_size)))

    def condition(self, captions: list[str]) -> Condition:
        """What the text encoder makes of captions."""
        made: Condition = self.trained.captions(captions)
        return made


def machine(device: torch.device) -> str:
    """The device that is measured on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
