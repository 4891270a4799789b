"""Whether latent shards belong to the networks and the pictures of a training."""

from omegaconf import DictConfig

from ldm.data import LatentData, ShardData
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.codec import LatentCodec


def refuse_other_latents(
    data: LatentData, val: ShardData, codec: LatentCodec, config: DictConfig
) -> None:
    """ValueError for another first stage, size, crop or background than this run's."""
    if data.made_by.get("first_stage") != codec.statistics.fingerprint:
        raise ValueError(
            f"data.train.shards={config.data.train.shards}: these latents were made by another "
            f"first stage than first_stage={config.first_stage}; encode anew with `ldm encode "
            f"{config.first_stage} DST`, or name the first stage that made them"
        )
    layout = data.layout
    shape = codec.latent_shape(config.image_size)
    if (layout.channels, layout.height, layout.width) != shape:
        raise ValueError(
            f"image_size={config.image_size} makes latents {shape}, but the latent shards hold "
            f"{(layout.channels, layout.height, layout.width)}; set image_size to what was encoded"
        )
    transforms = data.made_by.get("transforms", val.transforms)
    if transforms != val.transforms:
        raise ValueError(
            f"data.train.shards={config.data.train.shards}: these latents are of pictures made to "
            f"{transforms}, data.val makes them to {val.transforms}; encode anew, or set data.val"
        )


def refuse_other_text(data: LatentData, captions: CaptionEncoder, config: DictConfig) -> None:
    """Shards that hold captions instead go with any text encoder."""
    if data.layout.has_text and data.made_by.get("text") != captions.fingerprint():
        raise ValueError(
            f"data.train.shards={config.data.train.shards}: these text states were made by another "
            "text encoder than text is set to; encode anew with `ldm encode "
            f"{config.first_stage} DST --text text=…`, or set text to the one that made them"
        )
