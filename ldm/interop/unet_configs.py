"""The U-Net's shape as the config of diffusers' UNet2DConditionModel, and back."""

from collections.abc import Mapping
from typing import Any

from ldm.interop.files import refuse_unless
from ldm.models import UNet

DIFFUSERS_CLASS = "UNet2DConditionModel"


def unet_to_diffusers(network: UNet, size: int) -> dict[str, Any]:
    """The config of the UNet2DConditionModel that computes the same, for latents of `size`.

    ValueError names what diffusers cannot express. The pooled vector goes in as SDXL's (text, then
    six sizes of 256 numbers) where it is wide enough for that, else as `class_labels`.
    """
    depths, heads = list(network.depths), list(network.heads)
    if not network.middle_depth:
        raise ValueError("diffusers has no U-Net with middle_depth=0: train with 1 or more")
    if depths[-1] not in (0, network.middle_depth):
        raise ValueError(
            f"diffusers gives the middle the depth of the last level, and middle_depth="
            f"{network.middle_depth} differs from depths[-1]={depths[-1]}"
        )
    if not network.attend_padding:
        raise ValueError(
            "diffusers' pipelines attend to padded tokens, and this U-Net does not: "
            "train with backbone.attend_padding=true"
        )
    config: dict[str, Any] = {
        "_class_name": DIFFUSERS_CLASS,
        "sample_size": size,
        "in_channels": network.in_channels + len(network.spatial),
        "out_channels": network.out_channels,
        "block_out_channels": list(network.channels),
        "layers_per_block": network.residual_blocks,
        "down_block_types": [
            "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [
            "CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)
        ],
        # A level without attention ignores its entry; the middle reads the last one.
        "transformer_layers_per_block": [*(d or 1 for d in depths[:-1]), network.middle_depth],
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "cross_attention_dim": network.text_width,
        "use_linear_projection": True,
        "norm_num_groups": network.groups,
    }
    if network.pooled_width > 6 * 256:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": network.pooled_width,
        }
    elif network.pooled_width:
        config |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": network.pooled_width,
        }
    if network.text_pool_heads:
        if "addition_embed_type" in config:
            raise ValueError(
                "diffusers adds either pooled tokens or SDXL's pooled text to the time, not both: "
                "train with backbone.text_pool_heads=0 or backbone.pooled_width=0"
            )
        config |= {
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": network.text_pool_heads,
        }
    return config


_ONLY = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our U-Net with, for the shape that a UNet2DConditionModel's config tells.

    ValueError names the settings that ours does not have. `time_offset` is -1, as for all weights
    that were trained on the steps of a table.
    """
    refuse_unless(config, _ONLY, DIFFUSERS_CLASS)
    channels = config["block_out_channels"]
    levels = len(channels)

    def each(value: Any) -> list[int]:
        return list(value) if isinstance(value, list | tuple) else [value] * levels

    kinds = config.get(
        "down_block_types", ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]
    )
    mirrored = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    known = {"CrossAttnDownBlock2D", "DownBlock2D"}
    if set(kinds) - known or list(config.get("up_block_types", mirrored)) != mirrored:
        raise ValueError(
            f"down_block_types={kinds} with up_block_types={config.get('up_block_types')} cannot "
            f"be expressed here: each is one of {sorted(known)}, and the way up mirrors it"
        )
    depths = each(config.get("transformer_layers_per_block", 1))
    blocks = set(each(config.get("layers_per_block", 2)))
    if len(blocks) > 1:
        raise ValueError(f"layers_per_block={config['layers_per_block']} differs between levels")
    heads = each(config.get("num_attention_heads") or config.get("attention_head_dim", 8))
    added, classed = config.get("addition_embed_type"), config.get("class_embed_type")
    wide = added == "text_time", classed == "projection"
    if added not in (None, "text", "text_time") or classed not in (None, "projection") or all(wide):
        raise ValueError(
            f"addition_embed_type={added!r} and class_embed_type={classed!r} cannot be expressed "
            "here: only 'text', 'text_time' and 'projection' are known, the last two one at a time"
        )
    pooled = config.get("projection_class_embeddings_input_dim") if any(wide) else 0
    out = config.get("out_channels", 4)
    return {
        **channels_in(config.get("in_channels", 4), out),
        "text_width": config.get("cross_attention_dim", 1280),
        "channels": list(channels),
        "depths": [d if "CrossAttn" in kind else 0 for d, kind in zip(depths, kinds, strict=True)],
        "heads": heads,
        "middle_depth": depths[-1],
        "residual_blocks": blocks.pop(),
        "out_channels": out,
        "pooled_width": pooled or 0,
        "text_pool_heads": config.get("addition_embed_type_num_heads", 64)
        if added == "text"
        else 0,
        "groups": config.get("norm_num_groups", 32),
        "attend_padding": True,
        "time_offset": -1.0,
    }


def channels_in(taken: int, made: int) -> dict[str, Any]:
    """A network that takes more channels than it makes is told of a picture: of a mask, where it
    is 1, and a masked latent (inpainting), or of another latent."""
    beside = max(0, taken - made)
    blank = [1.0] + [0.0] * made if beside == made + 1 else [0.0] * beside
    return {"in_channels": taken - beside, "spatial": blank}
