"""The text encoder that a configuration names."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.commands.building import build
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.sizes import SizedCaptions


def text_encoder(config: DictConfig) -> CaptionEncoder:
    """The one of the group `text`, told of pictures' sizes where `text.sizes` says so."""
    encoder: CaptionEncoder = build(config.text.encoder, "text.encoder")
    wanted = config.text.get("sizes", False)  # older runs have no such key
    if wanted and not isinstance(encoder, SizedCaptions):  # text=sdxl tells them already
        return SizedCaptions(encoder, config.image_size)
    return encoder


def refuse_unheard_sizes(config: DictConfig) -> None:
    """ValueError where sizes would be told to a network that does not listen, or are not known."""
    asked = config.text.get("sizes", False)
    backbone: Any = OmegaConf.to_container(config.backbone, resolve=False)
    if asked and not backbone.get("pooled_width"):
        raise ValueError(
            "text.sizes=true, but the backbone takes no pooled vector; set "
            "backbone.pooled_width='${text.pooled_width}', or text.sizes=false"
        )
    told = config.text.encoder._target_ == "ldm.frozen.sizes.SizedCaptions"  # text=sdxl
    if (asked or told) and config.data.train.get("_target_") == "ldm.data.LatentData":
        who = "text.sizes=true" if asked else "text.encoder tells of sizes"
        raise ValueError(
            f"{who}, but latent shards do not hold the pictures' sizes; train from pictures "
            "(data=shards), or " + ("set text.sizes=false" if asked else "take another text")
        )
