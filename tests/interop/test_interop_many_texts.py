"""Pipelines with text encoders of transformers, written, loaded and sampled by diffusers."""

from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ldm.commands.export import texts_of
from ldm.diffusion import DDIM, Betas, NetworkDenoiser, Noise, RectifiedFlow, Velocity
from ldm.diffusion.guidance import Guided
from ldm.frozen.captions_joined import JoinedCaptions
from ldm.frozen.captions_transformers import TransformersCaptions
from ldm.frozen.sizes import SizedCaptions
from ldm.interop.first_stage import FirstStage
from ldm.interop.pipelines import Parts, write_pipeline
from ldm.interop.schedulers import Described
from ldm.interop.text import write_clip_tokenizer
from ldm.interop.text_reading import text_node
from ldm.models import KLAutoencoder, MMDiT, UNet

PROMPTS = ["red apple", "cat"]
MEAN, STD = (0.3, -0.2, 0.1, 0.0), (0.5, 1.5, 2.0, 1.0)


def randomise(network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape) * scale)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random text encoders as a pipeline's folder has them."""
    folder = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "projection_dim": 6,
        "eos_token_id": 49407,
        "pad_token_id": 0,
    }
    kinds = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_4": CLIPTextModelWithProjection,
    }
    for name, kind in kinds.items():
        kind(CLIPTextConfig(**shape)).save_pretrained(folder / name)
        write_clip_tokenizer(
            folder / name.replace("text_encoder", "tokenizer"),
            open_clip.SimpleTokenizer(context_length=8),
        )
    T5EncoderModel(
        T5Config(vocab_size=10, d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folder / "text_encoder_3")
    numbers = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "red", "apple", "cat"])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer_3")
    return folder


def encoder(folder: Path, number: str, **settings) -> TransformersCaptions:
    return TransformersCaptions(
        str(folder),
        subfolders=[f"text_encoder{number}", f"tokenizer{number}"],
        masked=False,
        **({"length": 8} | settings),
    )


def autoencoder() -> KLAutoencoder:
    network = KLAutoencoder(latent_channels=4, width=8, multipliers=[1, 2], blocks=1, groups=4)
    randomise(network)
    return network.eval()


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
