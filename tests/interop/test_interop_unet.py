"""The U-Net against diffusers' own, with the same random weights."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from small_parts import randomise

from ldm.interop.unet import COMPVIS, diffusers_names, unet_table
from ldm.interop.unet_configs import unet_arguments, unet_to_diffusers
from ldm.models import UNet
from ldm.types import Condition


def theirs_of(network: UNet) -> UNet2DConditionModel:
    config = json.loads(json.dumps(unet_to_diffusers(network, 8)))
    theirs = UNet2DConditionModel.from_config(config)
    table = unet_table(network, diffusers_names(config), convolutions=False)
    theirs.load_state_dict(table.give(network.state_dict()), strict=True)
    return theirs


def difference(network: UNet, theirs: UNet2DConditionModel, dtype: torch.dtype) -> float:
    network, theirs = network.to(dtype), theirs.to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, network.in_channels, 8, 4, generator=generator).to(dtype)
    tokens = torch.randn(2, 3, network.text_width, generator=generator).to(dtype)
    t = torch.tensor([0.25, 0.75], dtype=dtype)
    extra = {}
    pooled = None
    if network.pooled_width:
        pooled = torch.randn(2, network.pooled_width, generator=generator).to(dtype)
        extra = {"class_labels": pooled}
    condition = Condition(tokens, torch.ones(2, 3, dtype=torch.bool), pooled)
    with torch.no_grad():
        ours = network(x, t, condition)
        other = theirs(x, 1000 * t + network.time.offset, tokens, **extra).sample
    return float((ours - other).abs().max())


@st.composite
def shapes(draw: st.DrawFn) -> dict:
    levels = draw(st.integers(1, 3))
    depths = draw(st.lists(st.integers(0, 2), min_size=levels, max_size=levels))
    return {
        "in_channels": draw(st.integers(1, 5)),
        "text_width": draw(st.integers(3, 9)),
        "channels": draw(st.lists(st.sampled_from([8, 12, 16]), min_size=levels, max_size=levels)),
        "depths": depths,
        "heads": draw(st.lists(st.sampled_from([1, 2, 4]), min_size=levels, max_size=levels)),
        "middle_depth": depths[-1] or draw(st.integers(1, 2)),
        "residual_blocks": draw(st.integers(1, 2)),
        "out_channels": draw(st.sampled_from([None, 7])),
        "pooled_width": draw(st.sampled_from([0, 5])),
        "text_pool_heads": draw(st.sampled_from([0, 1])),
        "groups": draw(st.sampled_from([2, 4])),
        "attend_padding": True,
        "time_offset": draw(st.sampled_from([0.0, -1.0])),
    }


@settings(max_examples=12, deadline=None, derandomize=True)
@given(shape=shapes())
def test_any_shape_equals_diffusers(shape: dict) -> None:
    equals_diffusers(shape)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(shape=shapes())
def test_fifty_shapes_equal_diffusers(shape: dict) -> None:
    equals_diffusers(shape)


def equals_diffusers(shape: dict) -> None:
    network = UNet(**shape)
    randomise(network)
    theirs = theirs_of(network)
    assert difference(network, theirs, torch.float32) < 1e-5
    # diffusers pools the text with a softmax in float32, whatever the model's type.
    exact = 1e-7 if network.text_pool_heads else 1e-10
    assert difference(network, theirs, torch.float64) < exact


def test_the_way_back_is_bit_equal() -> None:
    network = UNet(
        4,
        6,
        channels=[8, 16],
        depths=[0, 2],
        heads=[1, 2],
        middle_depth=2,
        groups=4,
        attend_padding=True,
        time_offset=-1.0,
    )
    randomise(network)
    config = unet_to_diffusers(network, 8)
    table = unet_table(network, diffusers_names(config), convolutions=False)
    back = UNet(**unet_arguments(config))
    back.load_state_dict(table.take(table.give(network.state_dict()), "a test"))
    assert list(back.state_dict()) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


SD15_TINY = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def test_stable_diffusion_1_projects_by_convolutions() -> None:
    theirs = UNet2DConditionModel(**SD15_TINY)
    randomise(theirs)
    network = UNet(**unet_arguments(theirs.config))
    table = unet_table(network, diffusers_names(theirs.config), convolutions=True)
    network.load_state_dict(table.take(theirs.state_dict(), "a test"))
    assert difference(network, theirs, torch.float64) < 1e-10


def test_sdxl_adds_text_and_sizes() -> None:
    theirs = UNet2DConditionModel(
        **(SD15_TINY | {"use_linear_projection": True}),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + 10,
    )
    randomise(theirs)
    network = UNet(**unet_arguments(theirs.config))
    table = unet_table(network, diffusers_names(theirs.config), convolutions=False)
    network.load_state_dict(table.take(theirs.state_dict(), "a test"))
    assert unet_to_diffusers(network, 8)["addition_embed_type"] == "text_time"


def test_a_checkpoint_that_does_not_fit_is_described_and_not_loaded() -> None:
    network = UNet(4, 6, channels=[8], depths=[1], heads=[1], groups=4, attend_padding=True)
    table = unet_table(network, COMPVIS, convolutions=True)
    state = table.give(network.state_dict())
    del state["time_embed.0.bias"]
    state["control.weight"] = torch.zeros(1)
    state["out.0.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        table.take(state, "sd.ckpt")
    for part in (
        "1 missing: time_embed.0.bias",
        "1 unknown: control.weight",
        "out.0.weight [3] instead of [8]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "mish"},
        {"resnet_time_scale_shift": "scale_shift", "dual_cross_attention": True},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        {"class_embed_type": "timestep"},
        {"layers_per_block": [1, 2]},
    ],
)
def test_what_ours_does_not_have_is_named(change: dict) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        unet_arguments(SD15_TINY | change)
    assert all(name in str(caught.value) for name in change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"middle_depth": 0}, "middle_depth=0"),
        ({"depths": [1, 2], "middle_depth": 1}, "depths"),
        ({"attend_padding": False}, "attend_padding"),
    ],
)
def test_what_diffusers_does_not_have_is_named(change: dict, named: str) -> None:
    arguments = {"channels": [8, 8], "depths": [1, 1], "heads": [1, 1], "attend_padding": True}
    network = UNet(4, 6, **(arguments | change), groups=4)
    with pytest.raises(ValueError, match=named):
        unet_to_diffusers(network, 8)
