"""Trainings on real pictures: what the first stage promises, each minutes long on two cores."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import lightning as L
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from autoencoder_runs import Pictures, trainer
from torch import Tensor

from ldm.commands.building import build
from ldm.commands.composing import composed
from ldm.data import ShardData, normalise, validation_batches
from ldm.metrics.reconstruction import psnr
from ldm.models import (
    L1,
    Alignment,
    Autoencoder,
    Equivariance,
    FiniteScalarQuantizer,
    KLAutoencoder,
    QuantisedAutoencoder,
    ReconstructionLoss,
    VectorQuantizer,
)
from ldm.models.autoencoder_regularisers import transformed
from ldm.training.autoencoder import AutoencoderModule
from ldm.training.muon import Muon
from ldm.training.optim import warmup_cosine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]


def emoji(count: int) -> Tensor:
    data = ShardData("asset:emoji/train-*.tar", size=64)
    batches = validation_batches(data, batch=64, rank=0, world=1, workers=0)
    images = torch.cat([normalise(batch["image"]) for batch in batches])
    return images[:: len(images) // count][:count]


def photo_crops() -> Tensor:
    """64 crops of 64 pixels from three photographs."""
    crops: list[Tensor] = []
    for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        picture = torch.from_numpy(photo).permute(2, 0, 1)
        tiles = picture.unfold(1, 64, 64).unfold(2, 64, 64).permute(1, 2, 0, 3, 4).flatten(0, 1)
        crops.extend(tiles)
    return torch.stack(crops[:: len(crops) // 64][:64]).float() / 127.5 - 1


def small(**settings: Any) -> KLAutoencoder:
    shape = {"latent_channels": 8, "width": 64, "multipliers": (1, 1), "blocks": 1, "patch": 4}
    return KLAutoencoder(**{**shape, "groups": 16, "middle_attention": False, **settings})


def train(
    network: Autoencoder,
    images: Tensor,
    steps: int,
    callbacks: Iterable[L.Callback] = (),
    **settings: Any,
) -> AutoencoderModule:
    module = AutoencoderModule(
        network,
        ReconstructionLoss(L1(), scales=2, edges=0.5),
        optimizer=partial(Muon, lr=3e-3),
        lr_schedule=partial(warmup_cosine, steps=steps, warmup=20, final=0.05),
        ema_decay=0.99,
        **settings,
    )
    fit = trainer(steps, list(callbacks), gradient_clip_val=1.0)
    fit.fit(module, Pictures(images, 16))
    return module


def quality(module: AutoencoderModule, images: Tensor) -> float:
    return float(psnr(module.reconstruct(images), images).mean())


@pytest.mark.parametrize("pictures", [photo_crops, partial(emoji, 64)], ids=["photos", "emoji"])
def test_it_overfits_to_35_decibels(pictures: Any) -> None:
    torch.manual_seed(0)
    images = pictures()
    assert quality(train(small(), images, 1500), images) >= 35


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reconstructions_survive_the_critics_start(seed: int) -> None:
    """With all that `experiment=emoji/autoencoder` ships, but for an earlier start."""
    start, found = 400, []
    words = [f"module.critic.start={start}", f"trainer.max_steps={start + 500}"]
    config = composed(["experiment=emoji/autoencoder", "name=critic", *words])
    torch.manual_seed(seed)
    images = emoji(512)
    network = build(config.autoencoder, "autoencoder")
    module = build(config.module, "module", autoencoder=network)

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            step = trainer.global_step
            if step >= start and (step - start) % 100 == 0:
                found.append(quality(module, images[:128]))

    clip = config.trainer.gradient_clip_val
    trainer(start + 500, [Watch()], gradient_clip_val=clip).fit(module, Pictures(images, 16))
    print(f"seed {seed}: PSNR every 100 steps from the start on: {found}")
    assert len(found) == 6
    assert min(found) > found[0] - 1


@pytest.mark.parametrize("pictures", [photo_crops, partial(emoji, 512)], ids=["photos", "emoji"])
@pytest.mark.parametrize(
    "quantizer",
    [partial(VectorQuantizer, 512, 4), partial(FiniteScalarQuantizer, [8, 8, 8], diversity=0.05)],
    ids=["vq", "fsq"],
)
def test_nine_tenths_of_the_codes_are_used(quantizer: Any, pictures: Any) -> None:
    torch.manual_seed(0)
    images = pictures()
    network = QuantisedAutoencoder(
        quantizer(),
        width=64,
        multipliers=(1, 1),
        blocks=1,
        patch=4,
        groups=16,
        middle_attention=False,
    )
    train(network, images, 600)
    with torch.no_grad():
        codes = network.eval().codes(images)
    assert len(codes.unique()) > 0.9 * 512


def equivariance_error(module: AutoencoderModule, images: Tensor) -> float:
    errors = []
    with torch.no_grad():
        latent = module.average.encode(images).mean
        for scale, turns in ((0.5, 0), (1.0, 1), (0.75, 2)):
            moved, wanted = transformed(latent, images, scale, turns)
            errors.append(float((module.average.decode(moved) - wanted).square().mean()))
    return sum(errors) / len(errors)


def test_equivariance_lowers_its_error() -> None:
    images, errors = emoji(256), []
    for equivariance in (None, Equivariance()):
        torch.manual_seed(0)
        module = train(small(), images, 300, equivariance=equivariance)
        errors.append(equivariance_error(module, images))
    print(f"squared error of moved latents' pictures without and with: {errors}")
    assert errors[1] < 0.7 * errors[0]


class Edges:
    """Features without weights: colours and their slopes, coarsely."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        slopes = [images.diff(dim=2, append=images[:, :, -1:]).abs()]
        slopes.append(images.diff(dim=3, append=images[..., -1:]).abs())
        return [F.avg_pool2d(torch.cat([images, *slopes], dim=1), 8)]

    def to(self, device: torch.device) -> "Edges":
        return self


def test_alignment_brings_latents_nearer_to_features() -> None:
    images, cosines = emoji(256), []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        alignment = Alignment(
            Edges(), latent_channels=8, width=9, weight=weight, cosine_margin=0.0, adaptive=False
        )
        module = train(small(), images, 300, alignment=alignment)
        with torch.no_grad():
            latent = module.network.encode(images).mean
            vectors = latent.movedim(1, -1).flatten(0, -2).double()
            told = Edges()(images)[0].movedim(1, -1).flatten(0, -2).double()
            solved = vectors @ torch.linalg.lstsq(vectors, told).solution
            cosines.append(float(F.cosine_similarity(solved, told, dim=-1).mean()))
    print(f"cosine to the features without and with: {cosines}")
    assert 1 - cosines[1] < 0.9 * (1 - cosines[0])
