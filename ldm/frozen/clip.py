"""CLIP models of open_clip's own kind: built from a config, loaded from a folder.

A folder is what open_clip calls a local directory: `open_clip_config.json` with `model_cfg` and
`preprocess_cfg`, and `open_clip_model.safetensors`. open_clip opens ours, and we open theirs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from ldm.assets import resolve
from ldm.tensor_files import write_tensors
from ldm.types import Image


class Clip(NamedTuple):
    """A model and the tokenizer that belongs to it."""

    model: Any  # an open_clip CLIP: encode_image, encode_text, logit_scale, visual
    tokenizer: Any


def new_clip(embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> Clip:
    """A model with fresh weights and the byte-pair tokenizer that open_clip ships.

    `vision` and `text` are the fields of open_clip's CLIPVisionCfg and CLIPTextCfg.
    """
    model = open_clip.CLIP(embed_dim=embed_dim, vision_cfg=dict(vision), text_cfg=dict(text))
    model.visual.image_mean, model.visual.image_std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    return Clip(model, open_clip.SimpleTokenizer(context_length=text["context_length"]))


def save_clip(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write fp16 weights and the config as an open_clip local directory.

    `config` holds new_clip's arguments: embed_dim, vision, text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_config = {
        "embed_dim": config["embed_dim"],
        "vision_cfg": dict(config["vision"]),
        "text_cfg": dict(config["text"]),
    }
    preprocess = {
        "mean": list(OPENAI_DATASET_MEAN),
        "std": list(OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess}, indent=1)
    (folder / "open_clip_config.json").write_text(text + "\n")
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    write_tensors(folder / "open_clip_model.safetensors", weights)


def load_clip(folder: str) -> Clip:
    """The frozen model of a folder in eval mode, fp32. FileNotFoundError says what is missing."""
    path = Path(resolve(folder))
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path}: no {name}; name a folder that open_clip saved or `experiment=emoji/clip` "
                "wrote (its runs/NAME/clip)"
            )
    model = open_clip.create_model(f"local-dir:{path}", precision="fp32")
    return Clip(model.eval().requires_grad_(False), open_clip.get_tokenizer(f"local-dir:{path}"))


class ClipMaps:
    """What the picture tower of a CLIP sees, layer by layer: `ldm.models.FeatureMaps` for a
    perceptual loss. Gradients pass to the pictures, never to the weights."""

    def __init__(self, folder: str, layers: Sequence[int]) -> None:
        self.visual = load_clip(folder).model.visual
        self.layers = list(layers)
        self.mean = torch.tensor(self.visual.image_mean)[:, None, None]
        self.std = torch.tensor(self.visual.image_std)[:, None, None]

    def to(self, device: torch.device) -> "ClipMaps":
        """Move the tower; returns itself."""
        self.visual.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, images: Image) -> list[Float[Tensor, "b c h w"]]:
        """One map for each of `layers`, of pictures in [-1, 1] of any size."""
        size = tuple(self.visual.image_size)
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        pixels = ((images + 1) / 2 - self.mean) / self.std
        found = self.visual.forward_intermediates(
            pixels, indices=self.layers, intermediates_only=True, output_fmt="NCHW"
        )
        maps: list[Tensor] = found["image_intermediates"]
        return maps
