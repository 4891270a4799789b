"""Drawing from pictures, along trajectories and with every option, on a model with random weights:
what the options do, and what is refused."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageSequence
from untrained_model import untrained

from ldm.commands import main
from ldm.commands.building import build
from ldm.commands.drawing import text_to_image
from ldm.commands.options import Asked
from ldm.commands.reconstruct import read_picture
from ldm.diffusion import DDIM, Guided, Heun, KarrasGrid, Projected, Rescaled, TrailingGrid
from ldm.frozen import LatentCodec
from ldm.generate import Source, to_picture


@pytest.fixture(scope="module")
def trained():
    """No layer of its network is zero, so that text and noise make a difference."""
    trained = untrained()
    generator = torch.Generator().manual_seed(0)
    for parameter in trained.denoiser.network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return trained


@pytest.fixture
def sample(trained, tmp_path, monkeypatch):
    """`ldm sample` in a folder of its own, with the picture `a.png` and the mask `mask.png`."""
    picture = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(picture).ellipse((6, 6, 34, 34), fill=(220, 30, 30))
    picture.save(tmp_path / "a.png")
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (20, 0, 40, 40))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm.commands.trained.load_diffusion", lambda run, first_stage: trained)

    def run(*arguments, verb="sample", beside=False):
        if not beside:
            shutil.rmtree("out", ignore_errors=True)
        monkeypatch.setattr("sys.argv", ["ldm", verb, "runs/x", *arguments, "--out", "out"])
        return main()

    return run


def pixels(path):
    with Image.open(path) as picture:
        return torch.tensor(list(picture.convert("RGB").tobytes())).reshape(
            picture.height, picture.width, 3
        )


def test_a_low_strength_stays_near_the_picture_and_a_full_one_forgets_it(trained):
    generate, _ = text_to_image(trained, argparse.Namespace(steps=10, guidance=1.0, device="cpu"))
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    through = trained.codec.decode(trained.codec.encode(image))

    def moved(strength):
        made = generate(["a cat"], [3], source=Source(image, strength))
        return (made - through).norm().item()

    assert moved(0.02) < moved(0.5) < moved(1.0)
    free = generate(["a cat"], [3])
    assert torch.equal(generate(["a cat"], [3], source=Source(image, 1.0)), free)


def test_what_is_kept_is_kept_to_the_pixel_in_every_sample(sample):
    mask = ["--init-image", "a.png", "--mask", "mask.png"]
    assert sample("a cat", "a dog", *mask, "--batch-size", "1", "--steps", "4") == 0
    to_picture(read_picture(Path("a.png"), 32)[0]).save("wanted.png")
    for name in ("000000", "000001"):
        left = (pixels(f"out/{name}.png") - pixels("wanted.png"))[:, :15]
        assert left.abs().max() <= 1
    painted = pixels("out/000000.png")[:, 17:] - pixels("out/000001.png")[:, 17:]
    assert painted.abs().max() > 0
    with Image.open("out/000000.png") as picture:
        assert picture.text["strength"] == "1.0"
        assert picture.text["mask"] == "mask.png"


def told_of_pictures(trained, spatial):
    """The same with a network that listens to a picture, and what it hears at each call."""
    node = {"_target_": f"ldm.training.conditioning.{spatial['kind']}", **spatial["arguments"]}
    more = {
        "module": {"conditioning": {"spatial": node}},
        "backbone": {"spatial": [0.0] * spatial["channels"]},
    }
    config = OmegaConf.merge(trained.config, more)
    network = build(config.backbone, "backbone").eval()
    heard = []
    network.register_forward_pre_hook(lambda _, given: heard.append(given[2].spatial))
    denoiser = build(config.diffusion, "diffusion").denoiser(network)
    return dataclasses.replace(trained, config=config, denoiser=denoiser), heard


INPAINTING = {"kind": "Inpainting", "arguments": {}, "channels": 5}
ENLARGING = {"kind": "Enlarging", "arguments": {"factor": 4}, "channels": 4}


def test_an_inpainting_network_hears_of_the_mask_and_of_what_is_kept(sample, trained, monkeypatch):
    made, heard = told_of_pictures(trained, INPAINTING)
    monkeypatch.setattr("ldm.commands.trained.load_diffusion", lambda run, first_stage: made)
    assert sample("a cat") == 0
    assert set(heard) == {None}
    heard.clear()
    mask = ["--init-image", "a.png", "--mask", "mask.png", "--guidance", "3"]
    assert sample("a cat", "a dog", *mask, "--negative", "blue") == 0
    for spatial in heard:
        assert spatial.shape == (4, 5, 4, 4)  # two prompts, and what guidance leads away from
        assert torch.equal(spatial, heard[0][:1].expand(4, -1, -1, -1))
    told = heard[0][0]
    assert not told[0, :, 0].any()
    assert (told[0, :, 2:] == 1).all()
    assert told[1:, :, 0].any()
    assert not told[1:, :, 2:].any()
    with Image.open("a.png") as picture:
        picture.paste((0, 0, 200), (26, 0, 40, 40))
        picture.save("b.png")
    assert sample("a cat", "--init-image", "b.png", "--mask", "mask.png") == 0
    torch.testing.assert_close(heard[-1][0], told)  # what is under the mask is not told


def test_an_enlarging_network_hears_of_the_small_picture(sample, trained, monkeypatch, capsys):
    made, heard = told_of_pictures(trained, ENLARGING)
    monkeypatch.setattr("ldm.commands.trained.load_diffusion", lambda run, first_stage: made)
    with Image.open("a.png") as picture:
        picture.resize((8, 8), Image.Resampling.BICUBIC).save("small.png")
    assert sample("a cat", "--init-image", "a.png", "--guidance", "1") == 0
    assert sample("a cat", "--init-image", "small.png", "--guidance", "1") == 0
    with Image.open("out/000000.png") as picture:
        assert picture.text["strength"] == "1.0"
    large, small = heard[0], heard[-1]
    nothing = made.codec.encode(torch.zeros(1, 3, 32, 32))
    assert (large - small).norm() < 0.2 * (large - nothing).norm()
    assert sample("a cat", "--init-image", "a.png", "--mask", "mask.png") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--mask mask.png: this run enlarges pictures" in line


def test_tiles_no_smaller_than_the_picture_change_nothing(sample, monkeypatch):
    tiles, decode = [], LatentCodec.decode

    def watched(codec, latent):
        tiles.append(codec.tile)
        return decode(codec, latent)

    monkeypatch.setattr(LatentCodec, "decode", watched)
    pictures = []
    for words in ((), ("--tile", "128")):
        assert sample("a cat", *words) == 0
        pictures.append(pixels("out/000000.png"))
    assert torch.equal(*pictures)
    assert tiles == [None, 16]


def test_no_picture_that_is_there_is_overwritten(sample, capsys):
    assert sample("a cat", "a dog") == 0
    names = ["000000.png", "000001.png", "grid.png"]
    first = [Path("out", name).read_bytes() for name in names]
    assert sample("a cat", beside=True) == 0
    assert "from 000002.png on, after those that were there" in capsys.readouterr().out
    assert [Path("out", name).read_bytes() for name in names] == first
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(
        [*names, "000002.png", "grid-000002.png"]
    )
    assert torch.equal(pixels("out/000002.png"), pixels("out/000000.png"))


@pytest.mark.parametrize("asked", [("a cat", [0]), (["a cat"], [0, 1]), ([], [])])
def test_from_python_a_seed_for_each_prompt(trained, asked):
    with pytest.raises(ValueError, match="give a list of prompts and a seed for each"):
        generator(trained)(*asked)


def test_a_cell_of_the_latent_is_kept_only_as_a_whole():
    paint = torch.zeros(1, 1, 8, 8)
    paint[..., 3] = 0.5
    source = Source(torch.zeros(1, 3, 8, 8), 1.0, paint)
    keep = source.keep(torch.zeros(2, 4, 2, 2))
    assert torch.equal(keep, torch.tensor([[[[0.5, 1.0], [0.5, 1.0]]]]))
    pasted = source.pasted(torch.ones(2, 3, 8, 8))
    assert torch.equal(pasted, paint.expand(2, 3, 8, 8))


def test_a_trajectory_is_a_strip_and_an_animation(sample):
    assert sample("a cat", "--steps", "3", "--sampler", "heun", "--trajectory") == 0
    with Image.open("out/000000-trajectory.png") as strip:
        assert strip.width == 4 * (96 + 2) - 2  # three stops and the result
        assert json.loads(strip.text["times"]) == pytest.approx([1, 2 / 3, 1 / 3])
    with Image.open("out/000000-trajectory.gif") as animation:
        assert len(list(ImageSequence.Iterator(animation))) == 4


def test_the_forward_chain_ends_in_the_noise_of_its_seed(sample, trained, capsys):
    assert sample("--image", "a.png", "--steps", "5", verb="explain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "t 0.000  alpha 1.0000  sigma 0.0000  SNR inf"
    assert lines[1] == "t 0.250  alpha 0.7500  sigma 0.2500  SNR 9"
    assert lines[4].endswith("SNR 0")
    with Image.open("out/chain.png") as chain:
        assert chain.width == 5 * 98 - 2
        assert chain.text["snr"] == '["inf", "9", "1", "0.111", "0"]'
    with Image.open("out/snr.png") as curve:
        assert curve.width > 600


def generator(trained, **asked):
    return text_to_image(trained, argparse.Namespace(**asked, device="cpu"))[0]


def test_options_become_the_sampler_and_the_manner(trained):
    assert generator(trained).sampler.steps == 2  # the run's own
    heun = generator(trained, sampler="heun", grid="karras", overrides=["sampler.grid.rho=5.5"])
    assert heun.sampler == Heun(2, KarrasGrid(sigma_max=80.0, rho=5.5))
    assert generator(trained, sampler="heun", passes=10).sampler == Heun(5)
    ddim = generator(trained, sampler="ddim", eta=0.5, grid="trailing", steps=7)
    assert ddim.sampler == DDIM(7, TrailingGrid(), 0.5)
    rescaled = generator(trained, guidance_rescale=0.3, guidance_interval="0.2,0.8").manner
    assert (rescaled.push, rescaled.low, rescaled.high) == (Rescaled(0.3), 0.2, 0.8)
    adaptive = generator(trained, guidance_kind="adaptive", thresholding=3.0).manner
    assert (type(adaptive.push), adaptive.push_momentum, adaptive.limit) == (Projected, -0.5, 3.0)


def test_autoguidance_leads_away_from_the_other_run(trained, monkeypatch, tmp_path):
    OmegaConf.save(trained.config, tmp_path / "config.yaml")
    weaker = untrained()
    monkeypatch.setattr("ldm.commands.drawing.load_diffusion", lambda run: weaker)
    generate = generator(trained, autoguidance=str(tmp_path), guidance=2.0)
    condition = trained.captions(["a cat"])
    guided = generate._guided(condition, "")
    assert isinstance(guided, Guided)
    assert guided.manner.weaker is weaker.denoiser
    assert guided.null is condition
    assert guided.null is not generate._guided(condition, "a dog").null
    OmegaConf.save(OmegaConf.merge(trained.config, {"image_size": 99}), tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="its image_size is 99, the run's 32"):
        generator(trained, autoguidance=str(tmp_path))


def test_thresholding_and_guidance_change_the_picture(trained):
    plain = generator(trained, guidance=3.0)(["a cat"], [0])
    for asked in (
        {"thresholding": 0.5},
        {"guidance_kind": "adaptive"},
        {"guidance_rescale": 1.0},
        {"guidance_interval": "0,0.7"},
    ):
        assert not torch.equal(generator(trained, guidance=3.0, **asked)(["a cat"], [0]), plain)
    never = generator(trained, guidance=3.0, guidance_interval="0,0")(["a cat"], [0])
    assert torch.equal(never, generator(trained, guidance=1.0)(["a cat"], [0]))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--strength 0.5", ["--strength 0.5", "--init-image"]),
        ("--mask mask.png", ["--mask", "--init-image"]),
        ("--init-image a.png --strength 0", ["--strength 0", "(0, 1]"]),
        ("--init-image a.png --strength 1.5", ["--strength 1.5", "0.6"]),
        ("--init-image a.png --mask small.png", ["--mask small.png", "8x8", "40x40"]),
        ("--init-image none.png", ["none.png", "no such file"]),
        ("--tile 60", ["--tile 60", "factor 8", "at least 128"]),
        ("--prompts latin.txt", ["latin.txt, line 2", "not UTF-8"]),
        ("--steps 0", ["sampler.steps", "at least 1"]),
        ("--passes 0", ["passes", "1 or more"]),
        ("--passes 5 --steps 5", ["--passes 5", "give one"]),
        ("--guidance -2", ["--guidance -2", "1 for none"]),
        ("--guidance-kind strong", ["guidance=strong", "adaptive"]),
        ("--guidance-interval 0.8", ["--guidance-interval 0.8", "LOW,HIGH"]),
        ("--guidance-interval 0.8,0.2", ["guidance.low", "0.8"]),
        ("--guidance-rescale 2", ["push.share", "2"]),
        ("--thresholding 0", ["guidance.limit", "null for none"]),
        ("--autoguidance nowhere", ["nowhere"]),
        ("--eta 2 --sampler ddim", ["eta is 2.0", "set 0"]),
        ("--eta 0.5 --sampler heun", ["--eta 0.5", "ddim"]),
        ("--grid karass", ["grid=karass", "'karras'"]),
        ("--set steps=3", ["--set steps=3", "sampler.KEY"]),
        ("--set sampler.ordr=3", ["sampler.ordr", "take"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(sample, capsys, typed, words):
    Image.new("L", (8, 8)).save("small.png")
    Path("latin.txt").write_bytes("a dog\ncafé\n".encode("latin-1"))
    assert sample("a cat", *typed.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


def test_options_that_a_verb_lacks_are_the_runs():
    assert Asked.of(argparse.Namespace(steps=3, other=1)) == Asked(steps=3)
