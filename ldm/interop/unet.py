"""The U-Net's weights under the names of diffusers and of CompVis, and its shape as a config."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ldm.interop.files import refuse_unless
from ldm.interop.links import Table
from ldm.models import UNet

DIFFUSERS_CLASS = "UNet2DConditionModel"


class Place(NamedTuple):
    """Where the parts of one of our blocks live on the other side."""

    residual: str
    transformer: str
    resample: str


@dataclass(frozen=True)
class Names:
    """How a project names what the blocks are made of."""

    time: tuple[str, str]
    pooled: tuple[str, str]
    enter: str
    norm: str
    leave: str
    residual: tuple[str, str, str, str, str, str]  # norm, conv, embedding, norm, conv, skip


DIFFUSERS = Names(
    time=("time_embedding.linear_1", "time_embedding.linear_2"),
    pooled=("add_embedding.linear_1", "add_embedding.linear_2"),
    enter="conv_in",
    norm="conv_norm_out",
    leave="conv_out",
    residual=("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
)
DIFFUSERS_CLASSES = Names(
    **(vars(DIFFUSERS) | {"pooled": ("class_embedding.linear_1", "class_embedding.linear_2")})
)
COMPVIS = Names(
    time=("time_embed.0", "time_embed.2"),
    pooled=("label_emb.0.0", "label_emb.0.2"),
    enter="input_blocks.0.0",
    norm="out.0",
    leave="out.2",
    residual=(
        "in_layers.0",
        "in_layers.2",
        "emb_layers.1",
        "out_layers.0",
        "out_layers.3",
        "skip_connection",
    ),
)


def _diffusers_places(network: UNet) -> Iterator[Place]:
    levels = len(network.channels)
    for level in range(levels):
        side = f"down_blocks.{level}"
        for index in range(network.residual_blocks):
            yield Place(f"{side}.resnets.{index}", f"{side}.attentions.{index}", "")
        if level < levels - 1:
            yield Place("", "", f"{side}.downsamplers.0.conv")
    yield Place("mid_block.resnets.0", "mid_block.attentions.0", "")
    yield Place("mid_block.resnets.1", "", "")
    for level in range(levels):
        side = f"up_blocks.{level}"
        for index in range(network.residual_blocks + 1):
            yield Place(
                f"{side}.resnets.{index}",
                f"{side}.attentions.{index}",
                f"{side}.upsamplers.0.conv",
            )


def _compvis_places(network: UNet) -> Iterator[Place]:
    levels = len(network.channels)
    number = 1
    for level in range(levels):
        for _ in range(network.residual_blocks):
            yield Place(f"input_blocks.{number}.0", f"input_blocks.{number}.1", "")
            number += 1
        if level < levels - 1:
            yield Place("", "", f"input_blocks.{number}.0.op")
            number += 1
    yield Place("middle_block.0", "middle_block.1", "")
    yield Place("middle_block.2", "", "")
    number = 0
    for level in reversed(range(levels)):
        # An upsampling stands behind whatever else its block has.
        behind = 2 if network.depths[level] else 1
        for _ in range(network.residual_blocks + 1):
            block = f"output_blocks.{number}"
            yield Place(f"{block}.0", f"{block}.1", f"{block}.{behind}.conv")
            number += 1


def unet_table(network: UNet, names: Names, *, convolutions: bool) -> Table:
    """`convolutions`: the other side projects in and out of transformers by 1x1 convolutions, as
    Stable Diffusion 1.x does."""
    table = Table(network)
    for ours, theirs in zip(("enter", "leave"), names.time, strict=True):
        table.same(f"time.network.{ours}", theirs)
    if network.pooled is not None:
        for ours, theirs in zip(("enter", "leave"), names.pooled, strict=True):
            table.same(f"pooled.{ours}", theirs)
    if network.text_pool is not None:
        if names is COMPVIS:
            raise ValueError(
                "CompVis' U-Net has no pooling of tokens: export with --to diffusers, or train "
                "with backbone.text_pool_heads=0"
            )
        _text_pool(table)
    table.same("enter", names.enter)
    table.same("norm", names.norm)
    table.same("leave", names.leave)
    places = _compvis_places(network) if names is COMPVIS else _diffusers_places(network)
    blocks: list[Any] = list(network.blocks)
    for index, (block, place) in enumerate(zip(blocks, places, strict=True)):
        if block.residual is not None:
            _residual(table, f"blocks.{index}.residual", place.residual, names)
        if block.transformer is not None:
            _transformer(
                table,
                f"blocks.{index}.transformer",
                place.transformer,
                depth=len(block.transformer.layers),
                convolutions=convolutions,
            )
        if block.resample is not None:
            table.same(f"blocks.{index}.resample.conv", place.resample)
    return table


def _text_pool(table: Table) -> None:
    table.same("text_pool.norm_in", "add_embedding.norm1")
    table.stacked("text_pool.place", "add_embedding.pool.positional_embedding")
    table.same("text_pool.query", "add_embedding.pool.q_proj")
    table.fused("text_pool.key_value", *(f"add_embedding.pool.{part}_proj" for part in "kv"))
    table.same("text_pool.leave", "add_embedding.proj")
    table.same("text_pool.norm_out", "add_embedding.norm2")


def _residual(table: Table, ours: str, theirs: str, names: Names) -> None:
    parts = ("norm_in", "conv_in", "embedding", "norm_out", "conv_out", "skip")
    for part, name in zip(parts, names.residual, strict=True):
        if f"{ours}.{part}.weight" in table.shapes:
            table.same(f"{ours}.{part}", f"{theirs}.{name}")


def _transformer(table: Table, ours: str, theirs: str, *, depth: int, convolutions: bool) -> None:
    project = table.pointwise if convolutions else table.same
    table.same(f"{ours}.norm", f"{theirs}.norm")
    project(f"{ours}.enter", f"{theirs}.proj_in")
    project(f"{ours}.leave", f"{theirs}.proj_out")
    for index in range(depth):
        here, there = f"{ours}.layers.{index}", f"{theirs}.transformer_blocks.{index}"
        table.same(f"{here}.self_norm", f"{there}.norm1")
        table.same(f"{here}.cross_norm", f"{there}.norm2")
        table.same(f"{here}.feed_norm", f"{there}.norm3")
        one, two = f"{there}.attn1", f"{there}.attn2"
        table.fused(f"{here}.self_attention.qkv", *(f"{one}.to_{part}" for part in "qkv"))
        table.same(f"{here}.self_attention.out", f"{one}.to_out.0")
        table.same(f"{here}.cross_attention.query", f"{two}.to_q")
        table.fused(f"{here}.cross_attention.key_value", f"{two}.to_k", f"{two}.to_v")
        table.same(f"{here}.cross_attention.out", f"{two}.to_out.0")
        table.same(f"{here}.feed_forward.enter", f"{there}.ff.net.0.proj")
        table.same(f"{here}.feed_forward.leave", f"{there}.ff.net.2")


def diffusers_names(config: Mapping[str, Any]) -> Names:
    """Which names a UNet2DConditionModel of this config has."""
    return DIFFUSERS_CLASSES if config.get("class_embed_type") == "projection" else DIFFUSERS


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
