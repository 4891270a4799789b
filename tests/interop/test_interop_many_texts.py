"""Pipelines with text encoders of transformers, written, loaded and sampled by diffusers."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from small_parts import MEAN, STD, autoencoder, randomise

from ldm.commands.export import texts_of
from ldm.diffusion import DDIM, Betas, NetworkDenoiser, Noise, RectifiedFlow, Velocity
from ldm.diffusion.guidance import Guided
from ldm.frozen.captions_joined import JoinedCaptions
from ldm.frozen.captions_transformers import TransformersCaptions
from ldm.frozen.sizes import SizedCaptions
from ldm.interop.first_stage import FirstStage
from ldm.interop.pipelines import Parts, write_pipeline
from ldm.interop.schedulers import Described
from ldm.interop.text_reading import text_node
from ldm.models import KLAutoencoder, MMDiT, UNet

PROMPTS = ["red apple", "cat"]


def encoder(folder: Path, number: str, **settings) -> TransformersCaptions:
    return TransformersCaptions(
        str(folder),
        subfolders=[f"text_encoder{number}", f"tokenizer{number}"],
        masked=False,
        **({"length": 8} | settings),
    )


def unet(**changes) -> UNet:
    arguments = {"channels": [8, 16], "depths": [0, 1], "heads": [1, 2], "groups": 4}
    network = UNet(4, **(arguments | {"attend_padding": True, "time_offset": -1.0} | changes))
    randomise(network)
    return network.eval()


def decoded(first: KLAutoencoder, latent: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        return (first.decode(latent * std + mean) / 2 + 0.5).clamp(0, 1)


TABLE = Described(Betas(0.00085, 0.012, 2.0), Noise(), -1.0)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_unet_with_one_or_two_text_encoders(texts: Path, tmp_path: Path, kind: str) -> None:
    first = autoencoder()
    if kind == "StableDiffusionPipeline":
        captions, network = encoder(texts, ""), unet(text_width=16)
    else:
        pair = [encoder(texts, "", layer=-2), encoder(texts, "_2", layer=-2, pooled="output")]
        captions = SizedCaptions(JoinedCaptions(pair, join="widths"), size=8)
        network = unet(text_width=32, pooled_width=6 + 6 * 256)
    assert captions.width == network.text_width
    assert captions.pooled_width == network.pooled_width
    parts = Parts(FirstStage(first, MEAN, STD), texts_of(captions), TABLE, 4)
    assert write_pipeline(tmp_path, network, parts) == kind
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline).__name__ == kind
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 4, 4)
    theirs = pipeline(
        PROMPTS, num_inference_steps=3, guidance_scale=3.0, latents=noise, output_type="pt"
    ).images
    denoiser = NetworkDenoiser(network, TABLE.schedule, TABLE.target)
    with torch.no_grad():
        guided = Guided(denoiser, captions(["", ""]), 3.0)
        latent = DDIM(steps=3)(guided, noise, captions(PROMPTS), None)
    torch.testing.assert_close(theirs, decoded(first, latent), atol=1e-4, rtol=0)
    back = text_node(tmp_path, tmp_path)  # what `ldm import` would write
    assert back["_target_"].endswith(type(captions).__name__)


def test_an_mmdit_with_three_text_encoders(texts: Path, tmp_path: Path) -> None:
    first = autoencoder()
    pair = [encoder(texts, n, layer=-2, pooled="output") for n in ("_2", "_4")]
    behind = encoder(texts, "_3", length=6)
    captions = JoinedCaptions([JoinedCaptions(pair, join="widths"), behind], join="tokens")
    network = MMDiT(
        4,
        captions.width,
        width=16,
        depth=2,
        heads=2,
        pooled_width=captions.pooled_width,
        patch=1,
        grid=4,
        base=4,
        attend_padding=True,
    ).eval()
    randomise(network)
    described = Described(RectifiedFlow(), Velocity(), 0.0)
    parts = Parts(FirstStage(first, MEAN, STD), texts_of(captions), described, 4)
    assert write_pipeline(tmp_path, network, parts) == "StableDiffusion3Pipeline"
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 4, 4)
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=noise,
        max_sequence_length=6,
        output_type="pt",
    ).images
    told, null, x = captions(PROMPTS), captions(["", ""]), noise
    with torch.no_grad():
        for here, there in pairwise(pipeline.scheduler.sigmas):
            t = here.expand(2)
            with_text, without = network(x, t, told), network(x, t, null)
            x = x + (there - here) * (without + 3.0 * (with_text - without))
    torch.testing.assert_close(theirs, decoded(first, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layer": -2}, "layer=-2, not -1"),
        ({"pooled": "output"}, "pooled=output"),
        ({"number": "_2"}, "is a CLIPTextModelWithProjection, not a CLIPTextModel"),
    ],
)
def test_text_that_a_pipeline_would_read_otherwise_is_refused(
    texts: Path, tmp_path: Path, settings: dict, named: str
) -> None:
    captions = encoder(texts, settings.pop("number", ""), **settings)
    parts = Parts(FirstStage(autoencoder(), MEAN, STD), texts_of(captions), TABLE, 4)
    with pytest.raises(ValueError, match=named):
        write_pipeline(tmp_path / "out", unet(text_width=16), parts)
    assert not (tmp_path / "out").exists()


def test_encoders_read_captions_of_their_own(texts: Path) -> None:
    """Dropping one encoder is the empty caption for it and the whole one for the others."""
    pair = [encoder(texts, "", layer=-2), encoder(texts, "_2", layer=-2, pooled="output")]
    captions = SizedCaptions(JoinedCaptions(pair, join="widths"), size=8)
    assert captions.leaves == 2
    told = captions.apart([["red apple"], [""]])
    assert torch.equal(told.tokens[..., :16], captions(["red apple"]).tokens[..., :16])
    assert torch.equal(told.tokens[..., 16:], captions([""]).tokens[..., 16:])
    assert torch.equal(told.pooled, captions([""]).pooled)
