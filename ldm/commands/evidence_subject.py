"""What `ldm evidence` looks at: the trained model, held-out pictures, and the CLIP that judges."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.commands.building import build
from ldm.commands.drawing import text_to_image
from ldm.data import normalise, validation_batches
from ldm.frozen.features import ClipFeatures, open_clip_features
from ldm.generate import TextToImage
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
    features: ClipFeatures
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
        batches = list(validation_batches(data, batch=64, rank=0, world=1, workers=0))
        images = torch.cat([normalise(batch["image"]) for batch in batches])
        captions = [caption for batch in batches for caption in batch["caption"]]
        chosen = [i * len(images) // arguments.samples for i in range(arguments.samples)]
        features = open_clip_features(arguments.clip or trained.config.evaluation.clip)
        trained.denoiser.network.to(device)
        trained.codec.to(device)
        trained.captions.to(device)
        about = {
            "run": trained.folder.path.name,
            "checkpoint": trained.checkpoint.path.name,
            "held-out pictures": len(chosen),
            "judge": features.name,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "torch": torch.__version__,
        }
        return Subject(
            trained,
            arguments,
            out,
            device,
            data,
            images[chosen].to(device),
            [captions[i] for i in chosen],
            features.to(device),
            about,
        )

    def latents(self) -> Tensor:
        """The pictures' latents."""
        parts = torch.split(self.images, self.arguments.batch_size)
        return torch.cat([self.trained.codec.encode(part) for part in parts])

    def draw(self, prompts: list[str], steps: int | None = None) -> Tensor:
        """One picture a prompt, seeds from 0, with the asked or the run's number of steps."""
        asked = argparse.Namespace(**{**vars(self.arguments), "device": str(self.device)})
        asked.steps = steps
        generate: TextToImage = text_to_image(self.trained, asked)[0]
        seeds = range(len(prompts))
        return torch.cat(list(generate.batches(prompts, seeds, self.arguments.batch_size)))

    def condition(self, captions: list[str]) -> Condition:
        """What the text encoder makes of captions."""
        made: Condition = self.trained.captions(captions)
        return made
