"""`ldm reconstruct`: what is printed of each picture."""

import argparse

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

    def run(lpips):
        return reconstruct.run(
            argparse.Namespace(run="run", images=["grey.png"], out="out", lpips=lpips)
        )

    return run


def test_psnr_and_without_weights_no_lpips(call, capsys):
    assert call(None) == 0
    said = capsys.readouterr().out
    assert "out/grey.png  PSNR 20.00 dB" in said  # a tenth of the range: -20 log10(0.1)
    assert "no LPIPS: it needs torchvision's vgg16-397923af.pth; name it with --lpips" in said
    with Image.open("out/grey.png") as pair:
        assert pair.size == (34, 16)


def test_lpips_where_its_weights_are(call, capsys, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: LPIPS needs"):
        call("nowhere.pth")
    monkeypatch.setattr(LPIPS, "to", lambda self, device: self)
    monkeypatch.setattr(LPIPS, "__call__", lambda self, a, b: (a - b).abs().mean()[None])
    assert call("there.pth") == 0
    assert "LPIPS 0.200" in capsys.readouterr().out
