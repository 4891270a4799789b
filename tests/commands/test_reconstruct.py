"""`ldm reconstruct`: what is printed of each picture."""

import argparse
from pathlib import Path

import pytest
from PIL import Image

from ldm.commands import parts, reconstruct
from ldm.models import LPIPS


class Darker:
    """A first stage that loses a tenth of the brightness."""

    def encode(self, image):
        return image

    def decode(self, latent):
        return latent - 0.2


@pytest.fixture
def call(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("image_size: 16\n")
    Image.new("RGB", (16, 16), (128, 128, 128)).save(tmp_path / "grey.png")
    monkeypatch.setattr(parts, "load_codec", lambda _: Darker())
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
