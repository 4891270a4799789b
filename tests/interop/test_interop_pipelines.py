"""Exported pipelines, loaded and sampled by diffusers, against our own samplers."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from small_parts import MEAN, STD, autoencoder, randomise
from transformers import CLIPTextModel, CLIPTokenizer

import ldm.interop.patched
from ldm.diffusion import DDIM, Betas, NetworkDenoiser, Noise, RectifiedFlow, Velocity
from ldm.diffusion.guidance import Guided
from ldm.frozen.captions import OpenClipCaptions
from ldm.frozen.clip import Clip, new_clip
from ldm.interop.autoencoder import autoencoder_table, compvis_autoencoder_table
from ldm.interop.autoencoder_configs import autoencoder_arguments, autoencoder_to_diffusers
from ldm.interop.first_stage import FirstStage, write_first_stage
from ldm.interop.pipelines import Parts, write_pipeline
from ldm.interop.schedulers import Described, described_by, scheduler_config
from ldm.interop.text import Tower, write_tower
from ldm.models import DiT, KLAutoencoder, UNet

VISION = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    made = new_clip(12, VISION, TEXT)
    return Clip(made.model.eval(), made.tokenizer)


SHAPES = st.fixed_dictionaries(
    {
        "widths": st.lists(st.sampled_from([8, 12, 20]), min_size=1, max_size=3),
        "blocks": st.integers(1, 2),
        "attention": st.sets(st.integers(0, 2)),
        "middle": st.booleans(),
        "channels": st.integers(1, 4),
        "convolutions": st.booleans(),
    }
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(shape=SHAPES)
def test_any_autoencoder_equals_diffusers(shape: dict) -> None:
    autoencoder_equals_diffusers(shape)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(shape=SHAPES)
def test_fifty_autoencoders_equal_diffusers(shape: dict) -> None:
    autoencoder_equals_diffusers(shape)


def autoencoder_equals_diffusers(shape: dict) -> None:
    network = autoencoder(
        latent_channels=shape["channels"],
        width=4,
        multipliers=[w // 4 for w in shape["widths"]],
        blocks=shape["blocks"],
        groups=2,
        attention_levels=sorted(
            level for level in shape["attention"] if level < len(shape["widths"])
        ),
        middle_attention=shape["middle"],
        latent_convolutions=shape["convolutions"],
    )
    config = autoencoder_to_diffusers(network, 8)
    theirs = AutoencoderKL.from_config(config).eval()
    state = autoencoder_table(network).give(network.state_dict())
    theirs.load_state_dict(state)
    back = KLAutoencoder(**autoencoder_arguments(config))
    back.load_state_dict(autoencoder_table(back).take(state, "a test"))
    assert all(torch.equal(back.state_dict()[n], v) for n, v in network.state_dict().items())
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        image = torch.rand(1, 3, 8, 8, dtype=dtype) * 2 - 1
        with torch.no_grad():
            ours, other = network.to(dtype).encode(image), theirs.to(dtype).encode(image)
            assert (ours.mean - other.latent_dist.mean).abs().max() < limit
            assert (ours.std - other.latent_dist.std).abs().max() < limit
            decoded = theirs.decode(ours.mean).sample
            assert (network.decode(ours.mean) - decoded).abs().max() < limit


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("convolutions", [True, False])
def test_normalisation_folds_into_the_exported_autoencoder(
    tmp_path: Path, patch: int, convolutions: bool
) -> None:
    network = autoencoder(patch=patch, latent_convolutions=convolutions)
    library, name = write_first_stage(tmp_path, FirstStage(network, MEAN, STD), 16)
    if library == "diffusers":
        theirs = AutoencoderKL.from_pretrained(tmp_path)
    else:
        assert (library, name) == ("ldm_patched_autoencoder", "PatchedAutoencoderKL")
        assert (tmp_path / f"{library}.py").is_file()
        theirs = ldm.interop.patched.PatchedAutoencoderKL.from_pretrained(tmp_path)
    assert 2 ** (len(theirs.config.block_out_channels) - 1) == network.factor
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        ours, other = network.encode(image), theirs.encode(image).latent_dist
        torch.testing.assert_close(other.mean, (ours.mean - mean) / std, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.std, ours.std / std, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            theirs.decode(other.mean).sample, network.decode(ours.mean), atol=1e-5, rtol=1e-5
        )


def test_compvis_autoencoder_keys_are_the_published_ones() -> None:
    """Names as in the published VAE of Stable Diffusion, whose number of tensors is 248."""
    with torch.device("meta"):
        network = KLAutoencoder(latent_channels=4, width=128, multipliers=[1, 2, 4, 4], blocks=2)
        given = compvis_autoencoder_table(network).give(network.state_dict())
    assert len(given) == 248
    assert sum(v.numel() for v in given.values()) == 83_653_863
    assert given["encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert given["decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    assert given["decoder.up.3.upsample.conv.weight"].shape == (512, 512, 3, 3)
    assert given["encoder.down.2.downsample.conv.weight"].shape == (512, 512, 3, 3)


@pytest.mark.parametrize("layer", [-1, -2])
def test_the_exported_text_tower_says_the_same(tmp_path: Path, clip: Clip, layer: int) -> None:
    captions = ["red apple", "", "the woman's 2 cats, in a (very) dark night-sky #5"]
    write_tower(tmp_path / "text_encoder", Tower(clip.model, clip.tokenizer, layer))
    theirs = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer(
        captions, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(ids, clip.tokenizer(captions))
    with torch.no_grad():
        states = theirs(ids).last_hidden_state
    encoder = OpenClipCaptions(clip, layer=layer)
    encoder.cut_was_told = True
    torch.testing.assert_close(states, encoder(captions).tokens, atol=1e-5, rtol=1e-5)


def tiny_unet(**changes) -> UNet:
    arguments = {"channels": [8, 16], "depths": [0, 1], "heads": [1, 2], "groups": 4}
    network = UNet(4, 16, **(arguments | {"attend_padding": True} | changes)).eval()
    randomise(network)
    return network


def pictures_of(pipeline: DiffusionPipeline, noise: torch.Tensor, steps: int) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        ["red apple", "cat"],
        num_inference_steps=steps,
        guidance_scale=3.0,
        latents=noise,
        output_type="pt",
    ).images


def ours_of(
    denoiser: NetworkDenoiser, clip: Clip, network: KLAutoencoder, noise: torch.Tensor, sampler
) -> torch.Tensor:
    captions = OpenClipCaptions(clip)
    guided = Guided(denoiser, captions(["", ""]), 3.0)
    with torch.no_grad():
        latent = sampler(guided, noise, captions(["red apple", "cat"]), None)
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        picture = network.decode(latent * std + mean)
    return (picture / 2 + 0.5).clamp(0, 1)


def test_a_pipeline_on_a_table_gives_our_samplers_pictures(tmp_path: Path, clip: Clip) -> None:
    network, first = tiny_unet(time_offset=-1.0), autoencoder(patch=2)
    described = Described(Betas(0.00085, 0.012, 2.0), Noise(), -1.0)
    parts = Parts(FirstStage(first, MEAN, STD), [Tower(*clip)], described, 4)
    assert write_pipeline(tmp_path, network, parts) == "StableDiffusionPipeline"
    noise = torch.randn(2, 4, 4, 4)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    theirs = pictures_of(pipeline, noise, 5)
    denoiser = NetworkDenoiser(network, described.schedule, described.target)
    ours = ours_of(denoiser, clip, first, noise, DDIM(steps=5))
    assert theirs.shape == (2, 3, 16, 16)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_pipeline_on_a_flow_gives_our_samplers_pictures(tmp_path: Path, clip: Clip) -> None:
    network, first = tiny_unet(), autoencoder()
    described = Described(RectifiedFlow(), Velocity(), 0.0)
    parts = Parts(FirstStage(first, MEAN, STD), [Tower(*clip)], described, 4)
    write_pipeline(tmp_path, network, parts)
    noise = torch.randn(2, 4, 4, 4)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    theirs = pictures_of(pipeline, noise, 3)
    # Its solver, written out: it starts at 0.999 and tells the network whole step numbers.
    captions = OpenClipCaptions(clip)
    told, null = captions(["red apple", "cat"]), captions(["", ""])
    stops, numbers = pipeline.scheduler.sigmas, pipeline.scheduler.timesteps
    x, before = noise, None
    with torch.no_grad():
        for index, number in enumerate(numbers):
            t = (number / 1000).expand(2)
            with_text, without = network(x, t, told), network(x, t, null)
            data = x - stops[index] * (without + 3.0 * (with_text - without))
            here, there = stops[index], stops[index + 1]
            lead = data
            if before is not None and there > 0:
                log_snr = [torch.log((1 - s) / s) for s in (stops[index - 1], here, there)]
                ratio = (log_snr[1] - log_snr[0]) / (log_snr[2] - log_snr[1])
                lead = data + (data - before) / (2 * ratio)
            stretch = ((1 - there) / there * here / (1 - here)).reciprocal() if there > 0 else 0.0
            x = there / here * x - (1 - there) * (stretch - 1) * lead
            before = data
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        picture = first.decode(x * std + mean)
    torch.testing.assert_close(theirs, (picture / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_a_pipeline_of_classes_loads_and_draws(tmp_path: Path) -> None:
    network = DiT(
        4, width=16, depth=1, heads=2, classes=1000, frequency_shift=1.0, time_offset=-1.0
    )
    described = Described(Betas(), Noise(), -1.0)
    first = FirstStage(autoencoder(), MEAN, STD)
    assert write_pipeline(tmp_path, network, Parts(first, [], described, 4)) == "DiTPipeline"
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline([207], num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 8, 8, 3)


def test_what_has_no_pipeline_is_told_what_has() -> None:
    described = Described(RectifiedFlow(), Velocity(), 0.0)
    network = DiT(4, width=16, depth=1, heads=2, text_width=4)
    parts = Parts(FirstStage(autoencoder(), MEAN, STD), [], described, 4)
    with pytest.raises(ValueError, match="StableDiffusionPipeline for a UNet"):
        write_pipeline(Path("nowhere"), network, parts)


@pytest.mark.parametrize(
    "described",
    [
        Described(RectifiedFlow(), Velocity(), 0.0),
        Described(Betas(0.00085, 0.012, 2.0), Noise(), -1.0),
        Described(Betas(), Noise(), -1.0),
    ],
)
def test_schedulers_come_back(described: Described) -> None:
    assert described_by(scheduler_config(described, joint=False)) == described


def test_schedulers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="has no scheduler for"):
        scheduler_config(Described(RectifiedFlow(), Noise(), 0.0), joint=False)
    with pytest.raises(ValueError, match=r"backbone\.time_offset=-1"):
        scheduler_config(Described(Betas(), Noise(), 0.0), joint=False)
    with pytest.raises(ValueError, match="squaredcos_cap_v2"):
        described_by({"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"})
