"""DiT weights under diffusers' names."""

from collections.abc import Mapping
from typing import Any

from ldm.interop.files import refuse_unless
from ldm.interop.links import Table
from ldm.models import DiT

DIFFUSERS_CLASS = "DiTTransformer2DModel"


def diffusers_dit_table(network: DiT) -> Table:
    """DiTTransformer2DModel holds the embeddings of time and class once a block, all alike."""
    table = Table(network)
    blocks = [f"transformer_blocks.{index}" for index in range(network.depth)]
    embedders = [f"{block}.norm1.emb" for block in blocks]
    for ours, theirs in (("enter", "linear_1"), ("leave", "linear_2")):
        table.repeated(
            f"time.network.{ours}", *(f"{e}.timestep_embedder.{theirs}" for e in embedders)
        )
    table.embedded("label", *(f"{e}.class_embedder.embedding_table" for e in embedders))
    table.same("enter.conv", "pos_embed.proj")
    table.same("leave.modulation.layer", "proj_out_1")
    table.same("leave.linear", "proj_out_2")
    for index, block in enumerate(blocks):
        here = f"blocks.{index}"
        table.same(f"{here}.modulation.layer", f"{block}.norm1.linear")
        table.fused(f"{here}.attention.qkv", *(f"{block}.attn1.to_{part}" for part in "qkv"))
        table.same(f"{here}.attention.out", f"{block}.attn1.to_out.0")
        table.same(f"{here}.feed_forward.enter", f"{block}.ff.net.0.proj")
        table.same(f"{here}.feed_forward.leave", f"{block}.ff.net.2")
    return table


def dit_to_diffusers(network: DiT, size: int) -> dict[str, Any]:
    """The config of the DiTTransformer2DModel that computes the same, for latents of `size`.

    ValueError names every switch that diffusers' DiT does not have.
    """
    wanted = {
        "text_width": (network.text_width, 0),
        "pooled_width": (network.pooled_width, 0),
        "hidden": (network.hidden, 4 * network.width),
        "qk_norm": (network.qk_norm, False),
        "rms_norm": (network.rms_norm, False),
        "swiglu": (network.swiglu, False),
        "rope": (network.rope, False),
        "shared_modulation": (network.shared_modulation, False),
        "registers": (0 if network.registers is None else len(network.registers), 0),
        "frequency_shift": (network.time.shift, 1.0),
        "spatial": (network.spatial, ()),
    }
    odd = [
        f"{name}={value} (only {only})" for name, (value, only) in wanted.items() if value != only
    ]
    if not network.classes:
        odd.append("classes=0 (it must know classes)")
    if odd:
        raise ValueError(f"diffusers' DiT does not have this network's {', '.join(odd)}")
    return {
        "_class_name": DIFFUSERS_CLASS,
        "num_attention_heads": network.heads,
        "attention_head_dim": network.width // network.heads,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_layers": network.depth,
        "sample_size": size,
        "patch_size": network.patch,
        "num_embeds_ada_norm": network.classes,
        "norm_eps": 1e-6,
    }


def dit_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our DiT with, for the shape that a DiTTransformer2DModel's config tells.

    Where the config says norm_eps 1e-5 it repeats diffusers' default: the authors' network, and
    ours, has 1e-6 throughout.
    """
    refuse_unless(
        config,
        {
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": False,
        },
        DIFFUSERS_CLASS,
    )
    heads = config.get("num_attention_heads", 16)
    channels = config.get("in_channels", 4)
    return {
        "in_channels": channels,
        "width": heads * config.get("attention_head_dim", 72),
        "depth": config.get("num_layers", 28),
        "heads": heads,
        "patch": config.get("patch_size", 2),
        "classes": config.get("num_embeds_ada_norm", 1000),
        "out_channels": config.get("out_channels") or channels,
        "time_offset": -1.0,
        "frequency_shift": 1.0,
    }
