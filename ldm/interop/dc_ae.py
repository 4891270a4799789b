"""The deep-compression autoencoder's weights under the names of diffusers' AutoencoderDC.

Diffusers divides the joined queries, keys and values into heads, and each head into query, key and
value; ours divides into queries, keys and values, and each of them into heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.interop.files import refuse_unless
from ldm.interop.links import Link, Table
from ldm.models import DeepCompressionAutoencoder

DIFFUSERS_CLASS = "AutoencoderDC"
HEAD_WIDTH = 32


def dc_ae_table(network: DeepCompressionAutoencoder) -> Table:
    """Diffusers' names."""
    table = Table(network)
    levels = len(network.level_blocks)
    last = levels - 1
    table.same("encoder.0", "encoder.conv_in")
    place = 1
    for level, count in enumerate(network.level_blocks):
        if level:
            there = f"encoder.down_blocks.{level - 1}.{network.level_blocks[level - 1]}.conv"
            table.same(f"encoder.{place}.conv", there)
            place += 1
        for index in range(count):
            _block(table, f"encoder.{place}", f"encoder.down_blocks.{level}.{index}")
            place += 1
    table.same("to_latent", "encoder.conv_out")
    table.same("from_latent", "decoder.conv_in")
    place = 0
    for level in reversed(range(levels)):
        there = f"decoder.up_blocks.{level}"
        for index in range(network.level_blocks[level]):
            behind = index + (level < last)  # what doubles the size stands first
            _block(table, f"decoder.{place}", f"{there}.{behind}")
            place += 1
        if level:
            table.same(f"decoder.{place}.conv", f"decoder.up_blocks.{level - 1}.0.conv")
            place += 1
    _norm(table, f"decoder.{place}", "decoder.norm_out")
    table.same("conv_out", "decoder.conv_out")
    return table


def _block(table: Table, ours: str, theirs: str) -> None:
    if f"{ours}.conv1.weight" in table.shapes:
        table.same(f"{ours}.conv1", f"{theirs}.conv1")
        table.same(f"{ours}.conv2", f"{theirs}.conv2")
        _norm(table, f"{ours}.norm", f"{theirs}.norm")
        return
    attention, mixing = f"{theirs}.attn", f"{theirs}.conv_out"
    names = tuple(f"{attention}.to_{part}.weight" for part in "qkv")
    table.links.append(Link(f"{ours}.query_key_value.weight", names, _apart, _together))
    _linear(table, f"{ours}.out", f"{attention}.to_out")
    _norm(table, f"{ours}.norm1", f"{attention}.norm_out")
    table.same(f"{ours}.widen", f"{mixing}.conv_inverted")
    table.same(f"{ours}.mix", f"{mixing}.conv_depth")
    table.same(f"{ours}.narrow", f"{mixing}.conv_point")
    _norm(table, f"{ours}.norm2", f"{mixing}.norm")


def _apart(weight: Tensor) -> list[Tensor]:
    rows, columns = weight.shape[:2]
    heads = weight.view(3, rows // (3 * HEAD_WIDTH), HEAD_WIDTH, columns).transpose(0, 1)
    return list(heads.reshape(rows, columns).chunk(3))


def _together(parts: list[Tensor]) -> Tensor:
    weight = torch.cat(parts)
    rows, columns = weight.shape
    kinds = weight.view(rows // (3 * HEAD_WIDTH), 3, HEAD_WIDTH, columns).transpose(0, 1)
    return kinds.reshape(rows, columns, 1, 1)


def _linear(table: Table, ours: str, theirs: str) -> None:
    """Our 1x1 convolution is their linear layer."""
    table.links.append(
        Link(
            f"{ours}.weight",
            (f"{theirs}.weight",),
            lambda x: [x[..., 0, 0]],
            lambda parts: parts[0][..., None, None],
        )
    )


def _norm(table: Table, ours: str, theirs: str) -> None:
    for part, leaf in (("scale", "weight"), ("shift", "bias")):
        table.links.append(
            Link(
                f"{ours}.{part}",
                (f"{theirs}.{leaf}",),
                lambda x: [x[:, 0, 0]],
                lambda parts: parts[0][:, None, None],
            )
        )


def dc_ae_to_diffusers(
    network: DeepCompressionAutoencoder, *, scale: float = 1.0
) -> dict[str, Any]:
    """The config of the AutoencoderDC that computes the same; `scale` is what latents are
    multiplied with. ValueError names what diffusers cannot express."""
    if network.patch > 1:
        raise ValueError(
            f"diffusers' {DIFFUSERS_CLASS} folds no pixels into channels before its first "
            f"convolution, and this autoencoder has patch={network.patch}: train one with "
            "autoencoder.patch=1"
        )
    levels = len(network.widths)
    plain = levels - network.attention_levels
    kinds = ["ResBlock"] * plain + ["EfficientViTBlock"] * network.attention_levels
    shape: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        shape |= {
            f"{side}_block_types": kinds,
            f"{side}_block_out_channels": list(network.widths),
            f"{side}_layers_per_block": list(network.level_blocks),
            f"{side}_qkv_multiscales": [[] for _ in range(levels)],
        }
    return {
        "_class_name": DIFFUSERS_CLASS,
        "in_channels": network.image_channels,
        "latent_channels": network.latent_channels,
        "attention_head_dim": HEAD_WIDTH,
        **shape,
        "scaling_factor": scale,
    }


_ONLY = {
    "attention_head_dim": HEAD_WIDTH,
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}


def dc_ae_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our autoencoder with, for the shape that an AutoencoderDC's config tells.

    ValueError names the settings that ours does not have. The published ones are among those: they
    attend at two scales (qkv_multiscales) and their decoders have more blocks than their encoders.
    """
    refuse_unless(config, _ONLY, DIFFUSERS_CLASS)
    widths = list(config.get("encoder_block_out_channels", (128, 256, 512, 512, 1024, 1024)))
    blocks = list(config.get("encoder_layers_per_block", (2, 2, 2, 3, 3, 3)))
    kinds = _each(config.get("encoder_block_types", "ResBlock"), len(widths))
    attending = sum(kind == "EfficientViTBlock" for kind in kinds)
    expected = ["ResBlock"] * (len(widths) - attending) + ["EfficientViTBlock"] * attending
    scales = ((), (), (), (5,), (5,), (5,))
    wanted = {
        "encoder_block_types": (kinds, expected),
        "decoder_block_types": (
            _each(config.get("decoder_block_types", "ResBlock"), len(widths)),
            kinds,
        ),
        "decoder_block_out_channels": (
            list(config.get("decoder_block_out_channels", widths)),
            widths,
        ),
        "decoder_layers_per_block": (
            list(config.get("decoder_layers_per_block", (3,) * len(widths))),
            blocks,
        ),
        "encoder_qkv_multiscales": (
            [list(s) for s in config.get("encoder_qkv_multiscales", scales)],
            [[] for _ in widths],
        ),
        "decoder_qkv_multiscales": (
            [list(s) for s in config.get("decoder_qkv_multiscales", scales)],
            [[] for _ in widths],
        ),
        "decoder_norm_types": (
            _each(config.get("decoder_norm_types", "rms_norm"), len(widths)),
            ["rms_norm"] * len(widths),
        ),
        "decoder_act_fns": (
            _each(config.get("decoder_act_fns", "silu"), len(widths)),
            ["silu"] * len(widths),
        ),
    }
    odd = [
        f"{name}={value} (only {only})" for name, (value, only) in wanted.items() if value != only
    ]
    odd += ["encoder_layers_per_block begins with 0"] * (not blocks[0])
    if odd:
        raise ValueError(f"this {DIFFUSERS_CLASS} cannot be expressed here: {', '.join(odd)}")
    return {
        "latent_channels": config.get("latent_channels", 32),
        "widths": widths,
        "blocks": blocks,
        "attention_levels": attending,
        "image_channels": config.get("in_channels", 3),
    }


def _each(value: Any, levels: int) -> list[Any]:
    return [value] * levels if isinstance(value, str) else list(value)
