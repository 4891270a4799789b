"""The U-Net's weights under the names of diffusers and of CompVis."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ldm.interop.links import Table
from ldm.models import UNet


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
