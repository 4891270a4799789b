"""The three trainings as compositions of parts, and the way from a finished run back to them."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm.commands.building import build
from ldm.commands.first_stage import LATENTS, kept_statistics, load_autoencoder, load_codec
from ldm.commands.metric_choices import in_run_metrics
from ldm.commands.picture_sizes import refuse_pictures, refuse_undivided, sizes_in
from ldm.commands.stale import refuse_other_latents, refuse_other_text, refuse_to_continue
from ldm.commands.text import refuse_unheard_sizes, text_encoder
from ldm.commands.weights import backbone_to_train, newest, start
from ldm.data import LatentData, all_pictures, valid_pictures
from ldm.frozen import LatentCodec
from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.clip import Clip, save_clip
from ldm.metrics import MetricGroup
from ldm.models import Autoencoder
from ldm.runs.folder import RunFolder
from ldm.training.autoencoder import AutoencoderModule, latent_statistics
from ldm.training.callbacks import LossByTime, Reconstructions, SampleQuality
from ldm.training.clip import ClipModule
from ldm.training.data import PictureDataModule
from ldm.training.diffusion import LatentDiffusionModule


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
    half = {"16-mixed": torch.float16}
    return (half | dict.fromkeys(("bf16-mixed", "bf16-true"), torch.bfloat16)).get(precision)


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

    def finish(
        self, folder: RunFolder, trainer: L.Trainer, module: Any, data: PictureDataModule
    ) -> None:
        """The open_clip folder, `clip/`."""
        if not trainer.is_global_zero:
            return
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
        refuse_pictures(self.config, autoencoder, sizes_in(data.train))
        start(autoencoder, self.config.autoencoder, "autoencoder")
        kept_statistics(self.config, autoencoder)  # what would be refused at the end is refused now
        module: AutoencoderModule = build(self.config.module, "module", autoencoder=autoencoder)
        return module

    def callbacks(self, folder: RunFolder, data: PictureDataModule) -> list[L.Callback]:
        """Grids of pictures, reconstructions and differences, with their Fréchet distance."""
        evaluation = self.config.evaluation
        choices = in_run_metrics(self.config, data, pairs=True)
        return [
            Reconstructions(
                every=evaluation.every,
                folder=folder.samples,
                pictures=lambda rank, world: all_pictures(data.val, rank=rank, world=world),
                shown=evaluation.shown,
                metrics=MetricGroup(choices.makers()),
                pairs=MetricGroup(choices.makers(of_pairs=True)),
            )
        ]

    def finish(
        self, folder: RunFolder, trainer: L.Trainer, module: Any, data: PictureDataModule
    ) -> None:
        """The latent contract, `latents.json`: of a frozen encoder as it was, else measured over
        the training pictures, by all ranks, with the average that was saved: the module's own may
        lie in parts on several ranks."""
        # Lightning has brought the module back to the CPU by now.
        device = trainer.strategy.root_device
        average = load_autoencoder(self.config, newest(folder)).to(device).eval()
        share = all_pictures(
            data.train, rank=trainer.global_rank, world=trainer.world_size, workers=data.workers
        )
        statistics = kept_statistics(self.config, average) or latent_statistics(
            average, valid_pictures(share), over_ranks=trainer.world_size > 1
        )
        if trainer.is_global_zero:
            statistics.save(folder.path / LATENTS)
            print(
                f"    wrote  {folder.path / LATENTS}: give first_stage={folder.path} to stage two"
            )


@dataclass(frozen=True)
class DiffusionStage:
    """The second stage, in the latents of a finished first one."""

    config: DictConfig

    def module(self, data: PictureDataModule) -> LatentDiffusionModule:
        """The network at the size that the first stage and the text encoder ask for."""
        codec = load_codec(self.config.first_stage)
        refuse_to_continue(self.config, codec.statistics)
        captions = text_encoder(self.config)
        refuse_unheard_sizes(self.config)
        self._fit(codec, captions)
        refuse_undivided(sizes_in(data.train), codec.autoencoder.factor)
        if isinstance(data.train, LatentData):
            refuse_other_latents(data.train, data.val, codec, self.config)
            refuse_other_text(data.train, captions, self.config)
        module: LatentDiffusionModule = build(
            self.config.module,
            "module",
            network=backbone_to_train(self.config),
            objective=build(self.config.diffusion, "diffusion"),
            codec=codec,
            captions=captions,
        )
        return module

    def callbacks(self, folder: RunFolder, data: PictureDataModule) -> list[L.Callback]:
        """Sample grids, and the metrics of what validation prompts give."""
        config, evaluation = self.config, self.config.evaluation
        choices = in_run_metrics(config, data)
        prompts = spread(list(data.val.captions()), evaluation.prompts)
        return [
            LossByTime(),
            SampleQuality(
                every=evaluation.every,
                folder=folder.samples,
                grid_prompts=evaluation.grid_prompts or prompts[:16],
                prompts=prompts,
                metrics=MetricGroup(choices.makers()),
                sampler=build(config.sampler, "sampler"),
                guidance=evaluation.guidance,
                image_size=config.image_size,
                batch_size=evaluation.batch_size,
                precision=autocast_dtype(config.precision),
                manner=build(config.guidance, "guidance"),
            ),
        ]

    def finish(
        self, folder: RunFolder, trainer: L.Trainer, module: Any, data: PictureDataModule
    ) -> None:
        """Say how to use it."""
        if not trainer.is_global_zero:
            return
        shown = self.config.evaluation.grid_prompts or list(islice(data.val.captions(), 1))
        print(f"      try  ldm sample {folder.path} {shlex.quote(str(shown[0]))} --out out")

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
            agree(key, asked, found, whose)
        with open_dict(config):
            config.latent = {"channels": channels, "size": height}
            config.text.width, config.text.pooled_width = captions.width, captions.pooled_width
        widen(config)


def agree(key: str, asked: int | None, found: int, whose: str) -> None:
    """ValueError where the configuration asks for another size than what it names has."""
    if asked is not None and asked != found:
        raise ValueError(
            f"{key}={asked}, but {whose} has {found}; set {key}=null to take its value, "
            "or name another one"
        )


def learns_variance(config: DictConfig) -> bool:
    """Whether the network's output is twice as wide as a latent."""
    return config.diffusion.get("variance") is not None


def widen(config: DictConfig) -> None:
    """Give the backbone the channels of a learned variance, where there is one and nothing is said
    of them."""
    if learns_variance(config) and config.backbone.get("out_channels") is None:
        with open_dict(config):
            config.backbone.out_channels = 2 * config.latent.channels


Stage = ClipStage | AutoencoderStage | DiffusionStage
STAGES: dict[str, Callable[[DictConfig], Stage]] = {
    "clip": ClipStage,
    "autoencoder": AutoencoderStage,
    "diffusion": DiffusionStage,
}


def spread(items: list[str], count: int) -> list[str]:
    """`count` of the items, evenly spaced over the list; all of them when there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
