"""A finished first stage: where it lies, its codec, its record of latents."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ldm.commands.building import build
from ldm.commands.weights import averaged, newest, own_tensors
from ldm.frozen import LatentCodec, LatentStatistics, fingerprint
from ldm.interop.reading import holds_models, read_autoencoder
from ldm.models import Autoencoder
from ldm.runs.checkpoints import Checkpoint
from ldm.runs.folder import RunFolder

LATENTS = "latents.json"


def load_codec(run: str) -> LatentCodec:
    """The codec of a first-stage run, or of an autoencoder of another tool; ValueError where its
    weights and statistics do not belong together, FileNotFoundError where there are none."""
    place = first_stage_at(run)
    if _foreign(place):
        return _foreign_codec(place)
    folder = RunFolder(place)
    config = OmegaConf.create(folder.config())
    expect_stage(folder, config, "autoencoder")
    if not (folder.path / LATENTS).is_file():
        raise FileNotFoundError(
            f"first_stage={run}: no {LATENTS}, so its training has not ended; start the same "
            "training again to finish it"
        )
    autoencoder = load_autoencoder(config, newest(folder))
    return LatentCodec(autoencoder, LatentStatistics.load(folder.path / LATENTS))


def record_of(place: str) -> LatentStatistics | None:
    """The statistics alone, as `load_codec` has them; None where none have been measured: of a run
    that has not ended, and of weights without the rest of a run."""
    path = first_stage_at(place)
    if (path / LATENTS).is_file():
        return LatentStatistics.load(path / LATENTS)
    if not _foreign(path) or own_tensors(path, "autoencoder") is not None:
        return None
    return _foreign_codec(path).statistics


def kept_statistics(config: DictConfig, autoencoder: Autoencoder) -> LatentStatistics | None:
    """The record of the first stage whose encoder a training keeps frozen; None where nothing is
    frozen, or there is no record yet. ValueError where the autoencoder's encoder is not that one.
    """
    if not config.module.freeze_encoder:
        return None
    init = config.autoencoder.init
    statistics = record_of(init)
    if statistics is not None and statistics.fingerprint not in (None, fingerprint(autoencoder)):
        raise ValueError(
            f"autoencoder.init={init}: its latents were measured with another encoder than "
            "module.freeze_encoder=true keeps here; set autoencoder to its network and "
            "autoencoder.init to the one that this run began from, or name=ANOTHER"
        )
    return statistics


def load_autoencoder(config: DictConfig, checkpoint: Checkpoint) -> Autoencoder:
    """The averaged weights of a first stage's checkpoint."""
    autoencoder: Autoencoder = build(config.autoencoder, "autoencoder")
    autoencoder.load_state_dict(averaged(checkpoint))
    return autoencoder


def first_stage_lacks(run: str) -> str | None:
    """What must be done before this first stage can be used; None where it can be."""
    folder = RunFolder(first_stage_at(run))
    if _foreign(folder.path):
        return None
    if not folder.config_file.is_file():
        return (
            f"first_stage={run} is not there yet: train it, or name an autoencoder of another tool "
            "(docs/formats.md)"
        )
    if not (folder.path / LATENTS).is_file():
        return f"finish first_stage={run}: it has no {LATENTS} yet"
    return None


def first_stage_at(run: str) -> Path:
    """The folder that is meant: of what `ldm import` wrote, the part."""
    path = Path(run)
    part = path / "first_stage"
    return path if _foreign(path) or not RunFolder(part).config_file.is_file() else part


def _foreign(path: Path) -> bool:
    return holds_models(path) and not RunFolder(path).config_file.is_file()


def _foreign_codec(path: Path) -> LatentCodec:
    """Latents are normalised as its authors say: one mean and one scale for all channels."""
    found = read_autoencoder(path)
    if found is None:
        raise ValueError(f"first_stage={path}: holds no autoencoder that is known here")
    channels = found.autoencoder.latent_channels
    statistics = LatentStatistics(
        (found.mean,) * channels,
        (found.std,) * channels,
        factor=found.autoencoder.factor,
        fingerprint=fingerprint(found.autoencoder),
    )
    return LatentCodec(found.autoencoder, statistics)


def expect_stage(folder: RunFolder, config: DictConfig, stage: str) -> None:
    """ValueError where the run trained another stage."""
    if config.get("stage_name") != stage:
        raise ValueError(
            f"{folder.path} holds a run of stage {config.get('stage_name')!r}; "
            f"name one that trained stage={stage}"
        )
