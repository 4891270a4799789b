"""`ldm reconstruct`: what is printed of each picture."""

import argparse
from pathlib import Path

import miniature
import pytest
import torch
from PIL import Image, ImageChops

from ldm.commands import reconstruct
from ldm.commands.trained import load_diffusion
from ldm.interop.first_stage import FirstStage, write_first_stage
from ldm.models import LPIPS
from ldm.runs.checkpoints import STATE, write_checkpoint


class Darker:
    """A codec that loses a tenth of the brightness."""

    factor = 1

    @property
    def autoencoder(self):
        return self

    def encode(self, image):
        return image

    def decode(self, latent):
        return latent - 0.2


@pytest.fixture
def call(tmp_path, monkeypatch):
    Image.new("RGB", (16, 16), (128, 128, 128)).save(tmp_path / "grey.png")
    monkeypatch.setattr(reconstruct, "first_stage", lambda run: (Darker(), 16))
    monkeypatch.delenv("LDM_VGG16", raising=False)
    monkeypatch.chdir(tmp_path)

    return command


def command(*words):
    """What the verb does with these words."""
    parser = argparse.ArgumentParser()
    reconstruct.add_parser(parser.add_subparsers())
    return reconstruct.run(parser.parse_args(["reconstruct", *map(str, words)]))


def test_psnr_and_without_weights_no_lpips(call, capsys):
    assert call("run", "grey.png") == 0
    said = capsys.readouterr().out
    assert "out/grey.png  PSNR 20.00 dB" in said  # a tenth of the range: -20 log10(0.1)
    assert "no LPIPS: it needs torchvision's vgg16-397923af.pth; name it with --lpips" in said
    with Image.open("out/grey.png") as pair:
        assert pair.size == (34, 16)


def test_lpips_where_its_weights_are(call, capsys, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: LPIPS needs"):
        call("run", "grey.png", "--lpips", "nowhere.pth")
    monkeypatch.setattr(LPIPS, "to", lambda self, device: self)
    monkeypatch.setattr(LPIPS, "__call__", lambda self, a, b: (a - b).abs().mean()[None])
    assert call("run", "grey.png", "--lpips", "there.pth") == 0
    assert "LPIPS 0.200" in capsys.readouterr().out


def test_pictures_of_one_name_are_numbered_and_one_that_is_given_is_never_overwritten(call):
    for folder, grey in (("a", 0), ("b", 255)):
        Path(folder).mkdir()
        Image.new("RGB", (16, 16), (grey, grey, grey)).save(f"{folder}/x.png")
    Path("b/x-2.jpg").write_bytes(Path("grey.png").read_bytes())
    assert call("run", "a/x.png", "b/x.png", "b/x-2.jpg", "a/x.png", "--out", "o") == 0
    shown = {path.name: Image.open(path).getpixel((0, 0))[0] for path in Path("o").iterdir()}
    assert shown == {"x.png": 0, "x-2.png": 255, "x-2-2.png": 128, "x-3.png": 0}
    before = Path("grey.png").read_bytes()
    Path("link").symlink_to(".")
    for out in (".", "link"):
        with pytest.raises(ValueError, match=rf"--out {out}: .*grey\.png is one of the pictures"):
            call("run", "a/x.png", "grey.png", "--out", out)
    assert Path("grey.png").read_bytes() == before
    assert not Path("x.png").exists()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A first stage at factor 8 whose image_size is 16, and a picture of 67 x 51 pixels."""
    monkeypatch.delenv("LDM_VGG16", raising=False)
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").convert("RGB").resize((67, 51)).save("picture.png")
    return miniature.first_stage(tmp_path)


def made_by(*words):
    """The pair that is written for `picture.png`."""
    assert command(words[0], "picture.png", *words[1:]) == 0
    with Image.open("out/picture.png") as pair:
        return pair.copy()


def test_every_place_that_holds_a_first_stage_is_taken(run, tmp_path):
    first = made_by(run)
    assert first.size == (34, 16)
    codec, size = reconstruct.first_stage(str(run))
    assert size == 16
    (run / "latents.json").unlink()  # as long as the training has not ended
    assert made_by(run) == first
    other = {f"average.{n}": 2 * w for n, w in codec.autoencoder.state_dict().items()}
    write_checkpoint(
        run / "checkpoints", 2, lambda draft: torch.save({"state_dict": other}, draft / STATE)
    )
    assert made_by(run) != first
    assert made_by(run / "checkpoints" / "step-00000001") == first
    (tmp_path / "imported").mkdir()
    run.rename(tmp_path / "imported" / "first_stage")
    assert made_by("imported/first_stage/checkpoints/step-00000001") == first
    assert made_by("imported") != first
    stage = FirstStage(codec.autoencoder, (0.0,) * 4, (1.0,) * 4)
    write_first_stage(Path("foreign"), stage, 16)
    with pytest.raises(ValueError, match="foreign says no image_size to scale pictures to; add --"):
        made_by("foreign")
    assert made_by("foreign", "--whole").size == (2 * 64 + 2, 48)


def test_whole_pictures_lose_only_what_the_factor_leaves_over(run):
    whole = made_by(run, "--whole")
    with Image.open("picture.png") as picture:
        kept = picture.crop((1, 1, 65, 49))
    assert ImageChops.difference(whole.crop((0, 0, 64, 48)), kept).getbbox() is None
    Image.new("RGB", (7, 80)).save("picture.png")
    with pytest.raises(ValueError, match=r"picture\.png is 80x7 pixels, less than one latent cell"):
        made_by(run, "--whole")


def test_tiles_are_given_in_pixels(run):
    assert made_by(run, "--tile", 128) == made_by(run)  # no larger than a tile
    Image.radial_gradient("L").resize((448, 64)).convert("RGB").save("picture.png")
    tiles = ("--whole", "--tile", 384)
    once, tiled = made_by(run, *tiles, "--tile-passes", 1), made_by(run, *tiles)
    whole = made_by(run, "--whole")
    assert once.size == tiled.size == whole.size == (898, 64)

    def largest(picture):
        return max(high for _, high in ImageChops.difference(picture, whole).getextrema())

    assert largest(tiled) <= 4 < 40 < largest(once)  # of 255; group norms see a tile in one pass
    for pixels in (0, 120, 132):
        with pytest.raises(ValueError, match=rf"--tile {pixels}: .* factor 8 .* least 128; give"):
            made_by(run, "--tile", pixels)
    with pytest.raises(ValueError, match="--tile-passes 0: give 1 or more"):
        made_by(run, "--tile", 128, "--tile-passes", 0)
    with pytest.raises(ValueError, match="--tile-passes 2: there are no tiles; add --tile"):
        made_by(run, "--tile-passes", 2)


def test_a_first_stage_that_has_moved_is_asked_for(run):
    second = miniature.second_stage(run.parent, steps=(1,))
    run.rename(run.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"first is not there, the first stage of .*second"):
        load_diffusion(str(second))
    assert load_diffusion(str(second), str(run.with_name("elsewhere"))).checkpoint.step == 1


def test_what_is_no_first_stage_is_refused_without_a_key_that_nobody_typed(run):
    for place, why in (("nowhere", "not a run folder"), ("second", "stage 'diffusion'")):
        if place == "second":
            miniature.second_stage(run.parent, steps=())
        with pytest.raises((ValueError, FileNotFoundError), match=why) as error:
            made_by(place)
        assert "first_stage=" not in str(error.value)
