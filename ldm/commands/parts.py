"""The three trainings as compositions of parts, and the way from a finished run back to them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm.commands.building import build
from ldm.data import LatentData, ShardData, normalise, validation_batches
from ldm.data.batches import Data
from ldm.diffusion import Denoiser
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.clip import Clip, save_clip
from ldm.frozen.codec import LatentCodec, LatentStatistics
from ldm.frozen.features import open_clip_features
from ldm.metrics import (
    CLIPScore,
    Features,
    FrechetDistance,
    Reference,
    Retrieval,
    reference_statistics,
)
from ldm.models import Autoencoder
from ldm.runs.checkpoints import Checkpoint, checkpoints
from ldm.runs.folder import RunFolder
from ldm.training.autoencoder import AutoencoderModule, latent_statistics
from ldm.training.callbacks import LossByTime, Reconstructions, SampleQuality
from ldm.training.clip import ClipModule
from ldm.training.data import PictureDataModule
from ldm.training.diffusion import LatentDiffusionModule

LATENTS = "latents.json"


def precision_of(asked: str) -> str:
    """`auto` as bf16-mixed where the device multiplies bf16 natively, else 32-true."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What sampling computes in, to match a training's precision."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)


@dataclass(frozen=True)
class ClipStage:
    """A small CLIP of one's own: the text tower, the features and the score of the others."""

    config: DictConfig

    def module(self, data: PictureDataModule) -> ClipModule:
        """The model and its tokenizer."""
        model: Clip = build(self.config.clip, "clip")
        module: ClipModule = build(
            self.config.module, "module", network=model.model, tokenizer=model.tokenizer
        )
        return module

    def callbacks(self, folder: RunFolder, data: PictureDataModule) -> list[L.Callback]:
        """Nothing to look at: its validation is numbers."""
        return []

    def finish(self, folder: RunFolder, module: Any, data: PictureDataModule) -> None:
        """The open_clip folder, `clip/`."""
        plain: Any = OmegaConf.to_container(self.config.clip, resolve=True)
        save_clip(folder.path / "clip", module.network, plain)
        print(f"    wrote  {folder.path / 'clip'}: an open_clip model; evaluation.clip=… uses it")


@dataclass(frozen=True)
class AutoencoderStage:
    """The first stage."""

    config: DictConfig

    def module(self, data: PictureDataModule) -> AutoencoderModule:
        """The autoencoder with its losses."""
        autoencoder: Autoencoder = build(self.config.autoencoder, "autoencoder")
        if self.config.image_size % autoencoder.factor:
            raise ValueError(
                f"image_size={self.config.image_size} does not divide by the autoencoder's factor "
                f"{autoencoder.factor}; set image_size to a multiple of it"
            )
        module: AutoencoderModule = build(self.config.module, "module", autoencoder=autoencoder)
        return module

    def callbacks(self, folder: RunFolder, data: PictureDataModule) -> list[L.Callback]:
        """Grids of pictures, reconstructions and differences, with their Fréchet distance."""
        evaluation = self.config.evaluation
        features = open_clip_features(evaluation.clip)
        reference = reference_of(features, data.val)
        return [
            Reconstructions(
                every=evaluation.every,
                folder=folder.samples,
                pictures=lambda: _pictures(data.val),
                shown=evaluation.shown,
                metrics={"frechet_distance": FrechetDistance(features, reference)},
            )
        ]

    def finish(self, folder: RunFolder, module: Any, data: PictureDataModule) -> None:
        """The latent contract, `latents.json`, measured over the training pictures."""
        statistics = latent_statistics(module.average, _pictures(data.train))
        statistics.save(folder.path / LATENTS)
        print(f"    wrote  {folder.path / LATENTS}: give first_stage={folder.path} to stage two")


@dataclass(frozen=True)
class DiffusionStage:
    """The second stage, in the latents of a finished first one."""

    config: DictConfig

    def module(self, data: PictureDataModule) -> LatentDiffusionModule:
        """The network at the size that the first stage and the text encoder ask for."""
        codec = load_codec(self.config.first_stage)
        captions: CaptionEncoder = build(self.config.text.encoder, "text.encoder")
        self._fit(codec, captions)
        if isinstance(data.train, LatentData):
            _refuse_other_latents(data.train, codec, self.config)
        module: LatentDiffusionModule = build(
            self.config.module,
            "module",
            network=build(self.config.backbone, "backbone"),
            objective=build(self.config.diffusion, "diffusion"),
            codec=codec,
            captions=captions,
        )
        return module

    def callbacks(self, folder: RunFolder, data: PictureDataModule) -> list[L.Callback]:
        """Sample grids, Fréchet distance, CLIP score and retrieval of validation prompts."""
        config, evaluation = self.config, self.config.evaluation
        clip = open_clip_features(evaluation.clip)
        prompts = spread(list(data.val.captions()), evaluation.prompts)
        return [
            LossByTime(),
            SampleQuality(
                every=evaluation.every,
                folder=folder.samples,
                grid_prompts=evaluation.grid_prompts or prompts[:16],
                prompts=prompts,
                metrics={
                    "frechet_distance": FrechetDistance(clip, reference_of(clip, data.val)),
                    "clip_score": CLIPScore(clip),
                    "recall@5": Retrieval(clip, k=5),
                },
                sampler=build(config.sampler, "sampler"),
                guidance=evaluation.guidance,
                image_size=config.image_size,
                batch_size=evaluation.batch_size,
                precision=autocast_dtype(config.precision),
                manner=build(config.guidance, "guidance"),
            ),
        ]

    def finish(self, folder: RunFolder, module: Any, data: PictureDataModule) -> None:
        """Say how to use it."""
        print(f'      try  ldm sample {folder.path} "red apple" --out out')

    def _fit(self, codec: LatentCodec, captions: CaptionEncoder) -> None:
        config = self.config
        channels, height, _ = codec.latent_shape(config.image_size)
        for key, asked, found, whose in (
            ("latent.channels", config.latent.channels, channels, "the first stage"),
            ("latent.size", config.latent.size, height, "the first stage"),
            ("text.width", config.text.width, captions.width, "the text encoder"),
            (
                "text.pooled_width",
                config.text.pooled_width,
                captions.pooled_width,
                "the text encoder",
            ),
        ):
            if asked is not None and asked != found:
                raise ValueError(
                    f"{key}={asked}, but {whose} has {found}; set {key}=null to take its value, "
                    "or name another one"
                )
        with open_dict(config):
            config.latent = {"channels": channels, "size": height}
            config.text.width, config.text.pooled_width = captions.width, captions.pooled_width
        widen(config)


def widen(config: DictConfig) -> None:
    """Give the backbone the channels of a learned variance, where there is one and nothing is said
    of them."""
    learned = config.diffusion.get("variance") is not None
    if learned and config.backbone.get("out_channels") is None:
        with open_dict(config):
            config.backbone.out_channels = 2 * config.latent.channels


Stage = ClipStage | AutoencoderStage | DiffusionStage
STAGES: dict[str, Callable[[DictConfig], Stage]] = {
    "clip": ClipStage,
    "autoencoder": AutoencoderStage,
    "diffusion": DiffusionStage,
}


@dataclass(frozen=True)
class TrainedDiffusion:
    """What sampling needs of a finished (or still running) second stage."""

    folder: RunFolder
    config: DictConfig
    checkpoint: Checkpoint
    denoiser: Denoiser
    codec: LatentCodec
    captions: CaptionEncoder


def load_diffusion(run: str, first_stage: str | None = None) -> TrainedDiffusion:
    """The averaged network of a run's newest checkpoint, with its codec and text encoder."""
    folder = RunFolder(Path(run))
    config = OmegaConf.create(folder.config())
    _expect_stage(folder, config, "diffusion")
    checkpoint = newest(folder)
    network: torch.nn.Module = build(config.backbone, "backbone")
    state = checkpoint.load()["state_dict"]
    network.load_state_dict(_under(state, "average."))
    objective = build(config.diffusion, "diffusion")
    return TrainedDiffusion(
        folder,
        config,
        checkpoint,
        objective.denoiser(network.eval().requires_grad_(False)),
        load_codec(first_stage or config.first_stage),
        build(config.text.encoder, "text.encoder"),
    )


def load_codec(run: str) -> LatentCodec:
    """The codec of a first-stage run; ValueError where its weights and statistics do not belong
    together, FileNotFoundError where there are none."""
    folder = RunFolder(Path(run))
    config = OmegaConf.create(folder.config())
    _expect_stage(folder, config, "autoencoder")
    if not (folder.path / LATENTS).is_file():
        raise FileNotFoundError(
            f"first_stage={run}: no {LATENTS}, so its training has not ended; start the same "
            "training again to finish it"
        )
    autoencoder: Autoencoder = build(config.autoencoder, "autoencoder")
    autoencoder.load_state_dict(_under(newest(folder).load()["state_dict"], "average."))
    return LatentCodec(autoencoder, LatentStatistics.load(folder.path / LATENTS))


def newest(folder: RunFolder) -> Checkpoint:
    """The newest checkpoint that is whole, without touching the folder."""
    for checkpoint in reversed(checkpoints(folder.checkpoints)):
        if checkpoint.damage() is None:
            return checkpoint
    raise FileNotFoundError(
        f"{folder.checkpoints}: no whole checkpoint; train the run, or name another one"
    )


def spread(items: list[str], count: int) -> list[str]:
    """`count` of the items, evenly spaced over the list; all of them when there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _refuse_other_latents(data: LatentData, codec: LatentCodec, config: DictConfig) -> None:
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


def reference_of(features: Features, data: ShardData) -> Reference:
    """Mean and covariance of all the data's pictures."""
    return reference_statistics(features, _pictures(data), keep=0)


def _pictures(data: Data) -> Any:
    """All pictures once, normalised, in order."""
    for batch in validation_batches(data, batch=64, rank=0, world=1, workers=0):
        yield normalise(batch["image"])


def _under(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _expect_stage(folder: RunFolder, config: DictConfig, stage: str) -> None:
    if config.get("stage_name") != stage:
        raise ValueError(
            f"{folder.path} holds a run of stage {config.get('stage_name')!r}; "
            f"name one that trained stage={stage}"
        )
