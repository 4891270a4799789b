"""Whether latent shards and a first stage belong to the networks and pictures of a training."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.data import LatentData, ShardData
from ldm.frozen import LatentCodec, LatentStatistics
from ldm.frozen.captions import CaptionEncoder
from ldm.runs.folder import run_folder
from ldm.runs.state import read_state

SAME = 0.01  # of a deviation: what measuring again on another device moves is far below


def remembered(statistics: LatentStatistics) -> dict[str, Any]:
    """What a second stage's state keeps of the first one: all that makes its latents, and nothing
    of the decoder."""
    return {
        "fingerprint": statistics.fingerprint,
        "mean": statistics.mean,
        "std": statistics.std,
    }


def refuse_other_first_stage(
    run: Path, statistics: LatentStatistics, named: str, remedy: str
) -> None:
    """ValueError where the run was trained in other latents than these; a run of before this was
    remembered takes any."""
    known = read_state(run).facts.get("first_stage")
    if known is None:
        return
    if known["fingerprint"] != statistics.fingerprint:
        what = "its encoder has other weights"
    elif not _near(known["mean"], known["std"], statistics):
        what = "its latents.json has other means and deviations"
    else:
        return
    raise ValueError(f"{named}: not the first stage that {run} was trained with ({what}); {remedy}")


def refuse_to_continue(config: DictConfig, statistics: LatentStatistics) -> None:
    """The same of the run that the configuration names, where it is there already."""
    refuse_other_first_stage(
        run_folder(config.run_root, config.name).path,
        statistics,
        f"first_stage={config.first_stage}",
        "put that one back to continue, or set name=ANOTHER",
    )


def _near(means: list[float], stds: list[float], found: LatentStatistics) -> bool:
    return len(stds) == found.channels and all(
        abs(was - now) <= SAME * std
        for known, given in ((means, found.mean), (stds, found.std))
        for was, now, std in zip(known, given, stds, strict=True)
    )


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
