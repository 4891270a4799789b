"""What must hold for every backbone, whatever is in its blocks."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.commands.building import build
from ldm.models import DiT, MMDiT, TokenAlignment, UNet, checkpoint_blocks, with_sizes
from ldm.types import Condition

CONF = Path(__file__).parents[2] / "conf" / "backbone"
WIDTHS = {  # name: latent channels, text width, pooled width, published parameters in millions
    "sd15": (4, 768, 0, 859.52),
    "sd21": (4, 1024, 0, 865.91),
    "sdxl": (4, 2048, 2816, 2567.46),
    "dit_s_2": (4, 0, 0, 32.96),
    "dit_b_2": (4, 0, 0, 130.51),
    "dit_l_2": (4, 0, 0, 458.10),
    "dit_xl_2": (4, 0, 0, 675.13),
    "sit_s_2": (4, 0, 0, 32.96),
    "sit_b_2": (4, 0, 0, 130.51),
    "sit_l_2": (4, 0, 0, 458.10),
    "sit_xl_2": (4, 0, 0, 675.13),
    "lightningdit_xl_1": (32, 0, 0, 675.0),
    "sd3_medium": (16, 4096, 2048, 2028.33),
    "sd35_medium": (16, 4096, 2048, 2243.17),
    "unet_emoji": (8, 64, 64, None),
    "unet_own_text": (8, 1, 0, None),
    "dit_emoji": (8, 64, 64, None),
    "mmdit_emoji": (8, 64, 64, None),
    "unet_tiny": (4, 16, 0, None),
    "dit_tiny": (4, 16, 0, None),
    "mmdit_tiny": (4, 16, 0, None),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module
    if name == "unet":
        made = UNet(
            4,
            12,
            channels=[8, 16],
            depths=[0, 1],
            heads=[1, 2],
            groups=4,
            residual_blocks=1,
            pooled_width=6,
        )
    elif name == "dit":
        made = DiT(
            4, width=16, depth=2, heads=2, text_width=12, pooled_width=6, rope=True, qk_norm=True
        )
    else:
        made = MMDiT(
            4, 12, width=16, depth=2, heads=2, pooled_width=6, dual=1, qk_norm=True, grid=6, base=4
        )
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


BACKBONES = ["unet", "dit", "mmdit"]


def inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    torch.manual_seed(1)
    mask = torch.ones(rows, 5, dtype=torch.bool)
    mask[0, 3:] = False
    condition = Condition(torch.randn(rows, 5, 12), mask, torch.randn(rows, 6))
    return torch.randn(rows, 4, 8, 4), torch.rand(rows), condition


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_config_has_its_published_size(file: Path) -> None:
    channels, text, pooled, published = WIDTHS[file.stem]
    numbers = {
        "latent": {"channels": channels, "size": 8},
        "text": {"width": text, "pooled_width": pooled},
    }
    config = OmegaConf.merge(numbers, {"backbone": OmegaConf.load(file)})
    arguments = OmegaConf.to_container(config, resolve=True)["backbone"]
    with torch.device("meta"):
        count = sum(p.numel() for p in build(arguments, "backbone").parameters())
    if published is None:
        assert count < 20e6
    else:
        fixed = 256 * arguments["width"] if file.stem[:3] in ("dit", "sit") else 0
        # DiT's authors count its fixed table of positions in.
        assert (count + fixed) / 1e6 == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    made, (x, t, condition) = network(name), inputs()
    made(x, t, condition).square().sum().backward()
    assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", BACKBONES)
def test_masked_tokens_have_no_influence(name: str) -> None:
    made, (x, t, condition) = network(name), inputs()
    changed = torch.where(condition.mask[..., None], condition.tokens, 9.0)
    other = Condition(changed, condition.mask, condition.pooled)
    assert torch.equal(made(x, t, condition), made(x, t, other))
    padded = Condition(condition.tokens[:1], condition.mask[:1], condition.pooled[:1])
    short = Condition(padded.tokens[:, :3], padded.mask[:, :3], padded.pooled)
    torch.testing.assert_close(made(x[:1], t[:1], padded), made(x[:1], t[:1], short))


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_do_not_see_each_other(name: str) -> None:
    made, (x, t, condition) = network(name), inputs()
    alone = Condition(condition.tokens[1:], condition.mask[1:], condition.pooled[1:])
    torch.testing.assert_close(made(x, t, condition)[1:], made(x[1:], t[1:], alone))


@pytest.mark.parametrize("name", BACKBONES)
def test_checkpointed_gradients_are_the_plain_ones(name: str) -> None:
    plain, (x, t, condition) = network(name), inputs()
    kept = copy.deepcopy(plain)
    checkpoint_blocks(kept)
    for made in (plain, kept):
        made(x, t, condition).square().sum().backward()
    assert list(plain.state_dict()) == list(kept.state_dict())
    for (key, one), two in zip(plain.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), key


@pytest.mark.parametrize("name", BACKBONES)
def test_bfloat16_stays_near_float32(name: str) -> None:
    made, (x, t, condition) = network(name), inputs()
    exact = made(x, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = made(x, t, condition)
    error = (rounded.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.05


class Features:
    """Frozen features that do not look at the picture."""

    def __init__(self, maps: torch.Tensor) -> None:
        self.maps = maps

    def to(self, device: torch.device) -> None:
        pass

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.maps]


@pytest.mark.parametrize("name", BACKBONES)
def test_alignment_pulls_the_chosen_block_and_those_before_it(name: str) -> None:
    made, (x, t, condition) = network(name), inputs()
    plain = made(x, t, condition)
    features = Features(torch.randn(2, 10, 4, 2))
    alignment = TokenAlignment(
        features, block=0, width=8 if name == "unet" else 16, feature_width=10, hidden=12
    )
    with alignment.watching(made):
        assert torch.equal(made(x, t, condition), plain)
    loss = alignment(torch.zeros(2, 3, 32, 16))
    assert loss.shape == (2,)
    loss.sum().backward()
    assert all(p.grad is not None for p in made.enter.parameters())
    assert all(p.grad is None for p in made.blocks[1].parameters())
    assert all(p.grad is not None for p in alignment.parameters())
    with alignment.watching(made):
        made(x, t, condition)
    with pytest.raises(ValueError, match="stand on no grid of a 32x24 picture"):
        alignment(torch.zeros(2, 3, 32, 24))
    with (
        pytest.raises(ValueError, match=r"alignment\.block=99 does not exist"),
        TokenAlignment(features, block=99, width=8, feature_width=10).watching(made),
    ):
        pass


def test_alignment_is_zero_for_features_that_agree() -> None:
    alignment = TokenAlignment(Features(torch.zeros(1)), block=1, width=16, feature_width=16)
    alignment.projection = nn.Sequential()
    made = network("dit")
    with alignment.watching(made):
        made(*inputs())
    alignment.features = Features(3 * alignment.seen.detach().transpose(1, 2).unflatten(2, (4, 2)))
    torch.testing.assert_close(alignment(torch.zeros(2, 3, 32, 16)), torch.zeros(2))


def test_blocks_compile_without_graph_breaks() -> None:
    """In a process of its own: the runtime type checks of these tests are graph breaks."""
    script = Path(__file__).with_name("compile_blocks.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_channels_beside_the_latent_are_seen_and_counted() -> None:
    x, t, condition = inputs()
    extra = torch.randn(2, 3, 8, 4)
    made = DiT(4, spatial=[1.0, 0.0, 0.0], width=16, depth=1, heads=2, text_width=12)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    told = dataclasses.replace(condition, spatial=extra)
    moved = dataclasses.replace(condition, spatial=extra + 1)
    assert made(x, t, told).shape == x.shape
    assert not torch.allclose(made(x, t, told), made(x, t, moved))
    blank = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(2, 3, 8, 4)
    nothing = dataclasses.replace(condition, spatial=blank)
    assert torch.equal(made(x, t, condition), made(x, t, nothing))
    with pytest.raises(ValueError, match=r"set backbone\.in_channels=3"):
        made(x[:, :3], t, condition)
    with pytest.raises(ValueError, match=r"give backbone\.spatial a number for each"):
        made(x, t, dataclasses.replace(condition, spatial=extra[:, :2]))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_fresh_network_predicts_zero(name: str) -> None:
    """Zero-initialised output, as all three are published."""
    shapes = {
        "unet": lambda: UNet(4, 12, channels=[8], depths=[1], heads=[1], groups=4),
        "dit": lambda: DiT(4, width=16, depth=1, heads=2, text_width=12),
        "mmdit": lambda: MMDiT(4, 12, width=16, depth=2, heads=2),
    }
    assert not shapes[name]()(*inputs()).any()


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_in_a_forward_pass_waits_for_the_device(name: str) -> None:
    """On the meta device there are no numbers, so that a host that asks for one fails."""
    made = network(name).to("meta")
    x, t, condition = inputs()
    there = Condition(
        condition.tokens.to("meta"), condition.mask.to("meta"), condition.pooled.to("meta")
    )
    assert made(x.to("meta"), t.to("meta"), there).shape == x.shape


def test_guidance_and_dropout_leave_the_spatial_condition() -> None:
    _, _, condition = inputs()
    told = dataclasses.replace(condition, spatial=torch.randn(2, 3, 8, 4))
    assert torch.equal(told.where(torch.tensor([True, False]), condition).spatial, told.spatial)
    both = told.cat(condition).spatial
    assert torch.equal(both, torch.cat([told.spatial, told.spatial]))


def test_sizes_stand_behind_the_pooled_text_as_diffusers_puts_them() -> None:
    from diffusers.models.embeddings import Timesteps

    _, _, condition = inputs()
    sizes = torch.tensor([[512.0, 768, 0, 16, 1024, 1024], [64, 64, 1, 2, 64, 64]])
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(sizes.flatten())
    expected = torch.cat([condition.pooled, theirs.reshape(2, -1)], dim=1)
    assert torch.equal(with_sizes(condition, sizes).pooled, expected)
