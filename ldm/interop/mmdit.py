"""MMDiT weights under diffusers' names."""

from collections.abc import Mapping
from typing import Any

import torch

from ldm.interop.links import Table
from ldm.models import MMDiT
from ldm.models.embeddings import sincos_positions

DIFFUSERS_CLASS = "SD3Transformer2DModel"


def mmdit_table(network: MMDiT, size: int) -> Table:
    """SD3Transformer2DModel's names. Its table of positions is a formula, which ours computes;
    `size` of the latents says how large it is where the network has none of its own."""
    table = Table(network)
    embedder = "time_text_embed"
    for ours, theirs in (("enter", "linear_1"), ("leave", "linear_2")):
        table.same(f"time.network.{ours}", f"{embedder}.timestep_embedder.{theirs}")
        table.same(f"pooled.{ours}", f"{embedder}.text_embedder.{theirs}")
    table.same("text", "context_embedder")
    table.same("enter.conv", "pos_embed.proj")
    table.swapped("leave.modulation.layer", "norm_out.linear")
    table.same("leave.linear", "proj_out")
    for index in range(len(network.blocks)):
        last = index == len(network.blocks) - 1
        _block(table, index, dual=index < network.dual, last=last, qk_norm=network.qk_norm)
    grid, base = _grid(network, size)
    table.constants["pos_embed.pos_embed"] = sincos_positions(
        grid, grid, network.width, spacing=base / grid
    )[None]
    return table


def _grid(network: MMDiT, size: int) -> tuple[int, int]:
    if network.grid is None or network.base is None:
        return size // network.patch, size // network.patch
    return network.grid, network.base


def _block(table: Table, index: int, *, dual: bool, last: bool, qk_norm: bool) -> None:
    here, there = f"blocks.{index}", f"transformer_blocks.{index}"
    image, text = f"{here}.image", f"{here}.text"
    table.same(f"{image}.modulation.layer", f"{there}.norm1.linear")
    steer = table.swapped if last else table.same
    steer(f"{text}.modulation.layer", f"{there}.norm1_context.linear")
    attention = f"{there}.attn"
    table.fused(f"{image}.attention.qkv", *(f"{attention}.to_{part}" for part in "qkv"))
    table.fused(f"{text}.attention.qkv", *(f"{attention}.add_{part}_proj" for part in "qkv"))
    table.same(f"{image}.attention.out", f"{attention}.to_out.0")
    streams = [(image, "ff")]
    if not last:
        table.same(f"{text}.attention.out", f"{attention}.to_add_out")
        streams.append((text, "ff_context"))
    for stream, name in streams:
        table.same(f"{stream}.feed_forward.enter", f"{there}.{name}.net.0.proj")
        table.same(f"{stream}.feed_forward.leave", f"{there}.{name}.net.2")
    if dual:
        second = f"{there}.attn2"
        table.fused(f"{here}.second.qkv", *(f"{second}.to_{part}" for part in "qkv"))
        table.same(f"{here}.second.out", f"{second}.to_out.0")
    if qk_norm:
        for part, name in (("query", "q"), ("key", "k")):
            table.same(f"{image}.attention.{part}_norm", f"{attention}.norm_{name}")
            if last and part == "query":
                width = table.shapes[f"{image}.attention.query_norm.weight"]
                table.unused[f"{attention}.norm_added_q.weight"] = torch.ones(width)
            else:
                table.same(f"{text}.attention.{part}_norm", f"{attention}.norm_added_{name}")
            if dual:
                table.same(f"{here}.second.{part}_norm", f"{there}.attn2.norm_{name}")


def mmdit_to_diffusers(network: MMDiT, size: int) -> dict[str, Any]:
    """The config of the SD3Transformer2DModel that computes the same.

    ValueError names what diffusers cannot express.
    """
    if not network.pooled_width:
        raise ValueError("diffusers' SD3 transformer needs a pooled text: pooled_width=0 has none")
    if network.spatial:
        raise ValueError("diffusers' SD3 transformer is told of no picture: spatial=[] is needed")
    if not network.attend_padding:
        raise ValueError(
            "diffusers' SD3 transformer attends to padded tokens, and this one does not: "
            "train with backbone.attend_padding=true"
        )
    grid, base = _grid(network, size)
    return {
        "_class_name": DIFFUSERS_CLASS,
        "sample_size": base * network.patch,
        "patch_size": network.patch,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_layers": len(network.blocks),
        "attention_head_dim": network.width // network.heads,
        "num_attention_heads": network.heads,
        "joint_attention_dim": network.text_width,
        "caption_projection_dim": network.width,
        "pooled_projection_dim": network.pooled_width,
        "pos_embed_max_size": grid,
        "dual_attention_layers": list(range(network.dual)),
        "qk_norm": "rms_norm" if network.qk_norm else None,
    }


def mmdit_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our MMDiT with, for the shape that an SD3Transformer2DModel's config tells.

    ValueError names the settings that ours does not have.
    """
    dual = list(config.get("dual_attention_layers") or ())
    heads = config.get("num_attention_heads", 18)
    width = heads * config.get("attention_head_dim", 64)
    odd = []
    if dual != list(range(len(dual))):
        odd.append(f"dual_attention_layers={dual} (only the first few)")
    if config.get("qk_norm") not in (None, "rms_norm"):
        odd.append(f"qk_norm={config['qk_norm']!r} (only 'rms_norm')")
    if config.get("caption_projection_dim", 1152) != width:
        odd.append(f"caption_projection_dim={config.get('caption_projection_dim')} (only {width})")
    if odd:
        raise ValueError(f"this {DIFFUSERS_CLASS} cannot be expressed here: {', '.join(odd)}")
    patch = config.get("patch_size", 2)
    channels = config.get("in_channels", 16)
    return {
        "in_channels": channels,
        "text_width": config.get("joint_attention_dim", 4096),
        "width": width,
        "depth": config.get("num_layers", 18),
        "heads": heads,
        "pooled_width": config.get("pooled_projection_dim", 2048),
        "patch": patch,
        "out_channels": config.get("out_channels") or channels,
        "qk_norm": config.get("qk_norm") is not None,
        "dual": len(dual),
        "grid": config.get("pos_embed_max_size", 96),
        "base": config.get("sample_size", 128) // patch,
        "attend_padding": True,
    }
