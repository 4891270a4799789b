"""What a recipe needs, against counts by hand."""

import argparse
import re

import pytest
import torch
from torch import nn

from ldm.commands import plan as verb
from ldm.commands.building import build
from ldm.commands.composing import choices, composed
from ldm.commands.plan import Cost, Need, count, lines, peak_of, training_cost

SIZES = ["first_stage=nowhere", "latent.channels=4", "latent.size=32"]


def test_operations_and_parameters_of_a_layer_are_what_the_formula_says():
    with torch.device("meta"):
        layer = nn.Conv2d(3, 5, 3, padding=1)
        cost = count(layer, lambda: layer(torch.zeros(1, 3, 8, 8)))
    assert cost.parameters == 5 * (3 * 9 + 1)
    assert cost.forward == 2 * 5 * 3 * 9 * 64


def test_time_and_memory_follow():
    # 1e9 numbers; 1e12 operations forward; 100 TFLOP/s at half: 3e12 / 5e13 s a picture a device.
    need = Need(Cost(10**9, 1e12), 100, 36_000, 4, 100.0, 0.5)
    assert need.pictures_per_second == pytest.approx(4 * 5e13 / 3e12)
    assert need.hours == pytest.approx(36_000 * 100 * 3e12 / (4 * 5e13) / 3600)
    assert sum(need.memory().values()) == pytest.approx(5 * 4e9 / 2**30)
    assert sum(need.memory(4).values()) == pytest.approx(5 * 1e9 / 2**30)
    text = "\n".join(lines(need, "H100", 80.0))
    assert "1000.0 M parameters" in text
    assert "an assumption" in text


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("NVIDIA H1000", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(name, peak):
    assert peak_of(name) == peak


def test_every_autoencoder_can_be_reckoned():
    """A training does so before its first step, those with a codebook too."""
    for name in choices("autoencoder"):
        config = composed(["experiment=emoji/autoencoder", f"autoencoder={name}"])
        assert training_cost(config).forward > 1e6, name


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        (["experiment=imagenet/dit_xl_2"], 674.8),
        (["experiment=imagenet/vavae_f16"], 69.8),
        (["experiment=laion/sd15", "text.width=768", "text.encoder.source=nowhere"], 859.5),
    ],
)
def test_recipes_are_planned_without_pictures_and_weights(capsys, settings, millions):
    assert planned(capsys, *settings)["network"].startswith(f"{millions} M parameters")


def planned(capsys, *settings, gpu="H100", devices=8, utilisation=0.3):
    """What `ldm plan` prints, as name -> line."""
    arguments = argparse.Namespace(
        settings=list(settings), gpu=gpu, devices=devices, utilisation=utilisation
    )
    assert verb.plan(arguments) == 0
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_a_recipe_of_each_stage_is_planned(capsys):
    said = planned(capsys, "experiment=emoji/autoencoder")
    config = composed(["experiment=emoji/autoencoder"])
    with torch.device("meta"):
        size = sum(p.numel() for p in build(config.autoencoder, "autoencoder").parameters())
    assert said["network"].startswith(f"{size / 1e6:.1f} M parameters")
    more = ["backbone=dit_xl_2", "backbone.classes=0", "backbone.out_channels=4"]
    said = planned(capsys, "experiment=emoji/diffusion", *SIZES, *more)
    # DiT-XL/2 at 256 pixels: 675 M parameters (of them 1.2 M for classes), 118.6 G multiply-adds
    # (Peebles & Xie 2023, table 4), each of which is two operations.
    numbers = [float(n) for n in re.findall(r"[\d.]+", said["network"])]
    assert numbers[0] == pytest.approx(674, rel=0.005)
    assert numbers[1] == pytest.approx(2 * 118.6, rel=0.01)
    assert "H100 has 80 GB" in said["memory"]
    assert re.search(r"[\d.]+ days, [\d.]+ GPU-hours", said["time"])


@pytest.mark.parametrize(
    ("settings", "more", "word"),
    [
        (["experiment=emoji/autoencoder"], {"utilisation": 30.0}, "--utilisation=30.0"),
        (["experiment=emoji/autoencoder"], {"devices": 0}, "--devices=0"),
        (["experiment=emoji/clip"], {}, "stage=clip has no plan"),
        (["experiment=emoji/diffusion", "first_stage=nowhere"], {}, "latent.channels=8"),
        (["experiment=emoji/diffusion", *SIZES, "backbone=dit_xl_2"], {}, "backbone:"),
        (["experiment=emoji/autoencoder", "+trainer.max_step=3"], {}, "trainer.max_step"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(capsys, settings, more, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        planned(capsys, *settings, **more)
