"""The way from a run of the second stage back to its parts."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm.commands.building import build
from ldm.commands.first_stage import expect_stage, load_codec
from ldm.commands.stale import refuse_other_first_stage
from ldm.commands.text import text_encoder
from ldm.commands.weights import averaged, newest, trained_backbone
from ldm.diffusion import Denoiser
from ldm.frozen import LatentCodec
from ldm.frozen.captions import CaptionEncoder
from ldm.runs.checkpoints import Checkpoint, checkpoint_named, run_named
from ldm.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainedDiffusion:
    """What sampling needs of a finished (or still running) second stage."""

    folder: RunFolder
    config: DictConfig
    checkpoint: Checkpoint
    denoiser: Denoiser
    codec: LatentCodec
    captions: CaptionEncoder


def load_diffusion(target: str, first_stage: str | None = None) -> TrainedDiffusion:
    """The averaged network of a run's newest checkpoint or of the one that is named, with its
    codec and text encoder; ValueError for another first stage than it was trained with, be it the
    run's own place or `first_stage`. Another decoder is none."""
    folder = RunFolder(run_named(Path(target)))
    config = OmegaConf.create(folder.config())
    expect_stage(folder, config, "diffusion")
    checkpoint = checkpoint_named(Path(target)) or newest(folder)
    place = first_stage or config.first_stage
    if not Path(place).exists():
        raise FileNotFoundError(
            f"{place} is not there, the first stage of {folder.path}: say where it is with "
            "--first-stage"
        )
    codec = load_codec(place)
    refuse_other_first_stage(
        folder.path,
        codec.statistics,
        f"--first-stage {place}" if first_stage else f"first_stage={place}",
        "name it, or one with its encoder (module.freeze_encoder=true), with --first-stage",
    )
    network = trained_backbone(config, averaged(checkpoint))
    objective = build(config.diffusion, "diffusion")
    return TrainedDiffusion(
        folder,
        config,
        checkpoint,
        objective.denoiser(network.eval().requires_grad_(False)),
        codec,
        text_encoder(config),
    )
