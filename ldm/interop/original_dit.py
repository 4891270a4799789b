"""Checkpoints of DiT, SiT and LightningDiT as their authors publish them: names, and the shape that
the tensors tell.

All three trained on classes. Two facts leave no trace in the tensors. Heads: 16 where the width is
1152 (the XL models), else one for every 64 channels. And what the network was told and asked:
DiT knows the number of a step and predicts noise; SiT and LightningDiT know 1 - t and predict the
velocity from noise to data.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.interop.links import Link, Table
from ldm.models import DiT
from ldm.models.embeddings import rotary_angles, sincos_positions

FAMILIES = ("dit", "sit")  # LightningDiT is seen by its gated feed-forward layers
_MARK = "x_embedder.proj.weight"


def is_original_dit(state: Mapping[str, Tensor]) -> bool:
    """Whether these are an author's names."""
    return _MARK in state and "final_layer.linear.weight" in state


def original_dit_arguments(state: Mapping[str, Tensor], family: str) -> dict[str, Any]:
    """What to build our DiT with, read off the tensors. `family` is "dit" or "sit"."""
    width, channels, patch, _ = state[_MARK].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    swiglu = "blocks.0.mlp.w12.weight" in state
    first = state["blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight"]
    flow = swiglu or family == "sit"
    out = state["final_layer.linear.weight"].shape[0] // patch**2
    return {
        "in_channels": channels,
        "width": width,
        "depth": depth,
        "heads": 16 if width == 1152 else max(1, width // 64),
        "patch": patch,
        "classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,
        "out_channels": min(out, channels) if flow else out,
        "hidden": first.shape[0] // (2 if swiglu else 1),
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "rms_norm": "blocks.0.norm1.weight" in state,
        "swiglu": swiglu,
        "rope": "feat_rope.freqs_cos" in state,
        "time_scale": -1.0 if flow else 1000.0,
        "time_offset": 1.0 if flow else -1.0,
    }


def load_original_dit(network: DiT, state: Mapping[str, Tensor], source: str) -> None:
    """Fill the network that `original_dit_arguments` describes, whole or not at all."""
    flow = network.time.scale == -1
    made = state["final_layer.linear.weight"].shape[0] // network.patch**2
    cells = state["pos_embed"].shape[1] if "pos_embed" in state else 256
    table = original_dit_table(
        network,
        network.patch * round(cells**0.5),
        towards_data=flow,
        idle=flow and made > network.out_channels,
    )
    network.load_state_dict(table.take(state, source))


def _with_idle_half(table: Table, channels: int) -> None:
    """Our last layer has the first `channels` of their 2 * channels, with the other sign."""

    def give(ours: Tensor) -> list[Tensor]:
        cells = -ours.reshape(-1, channels, *ours.shape[1:])
        return [torch.cat([cells, torch.zeros_like(cells)], dim=1).flatten(0, 1)]

    def take(theirs: list[Tensor]) -> Tensor:
        return (
            -theirs[0].reshape(-1, 2 * channels, *theirs[0].shape[1:])[:, :channels].flatten(0, 1)
        )

    for leaf in ("weight", "bias"):
        names = (f"final_layer.linear.{leaf}",)
        table.links.append(Link(f"leave.linear.{leaf}", names, give, take))


def original_dit_table(network: DiT, size: int, *, towards_data: bool, idle: bool = False) -> Table:
    """The authors' names, which DiT, SiT and LightningDiT share, for latents of `size`.

    `towards_data`: their velocity points from noise to data (SiT, LightningDiT), ours to noise.
    `idle`: their last layer makes twice the channels and they drop the second half, as SiT does.
    """
    table = Table(network)
    table.same("enter.conv", "x_embedder.proj")
    table.same("time.network.enter", "t_embedder.mlp.0")
    table.same("time.network.leave", "t_embedder.mlp.2")
    table.embedded("label", "y_embedder.embedding_table")
    for index in range(network.depth):
        here = f"blocks.{index}"
        table.same(f"{here}.modulation.layer", f"{here}.adaLN_modulation.1")
        table.same(f"{here}.attention.qkv", f"{here}.attn.qkv")
        table.same(f"{here}.attention.out", f"{here}.attn.proj")
        if network.qk_norm:
            table.same(f"{here}.attention.query_norm", f"{here}.attn.q_norm")
            table.same(f"{here}.attention.key_norm", f"{here}.attn.k_norm")
        if network.rms_norm:
            table.same(f"{here}.attention_norm", f"{here}.norm1")
            table.same(f"{here}.feed_norm", f"{here}.norm2")
        if network.swiglu:
            table.swapped(f"{here}.feed_forward.enter", f"{here}.mlp.w12")
            table.same(f"{here}.feed_forward.leave", f"{here}.mlp.w3")
        else:
            table.same(f"{here}.feed_forward.enter", f"{here}.mlp.fc1")
            table.same(f"{here}.feed_forward.leave", f"{here}.mlp.fc2")
    table.same("leave.modulation.layer", "final_layer.adaLN_modulation.1")
    if network.rms_norm:
        table.same("leave.norm", "final_layer.norm_final")
    if idle:
        _with_idle_half(table, network.out_channels)
    elif towards_data:
        table.negated("leave.linear", "final_layer.linear")
    else:
        table.same("leave.linear", "final_layer.linear")
    cells = size // network.patch
    table.constants["pos_embed"] = sincos_positions(cells, cells, network.width)[None]
    if network.rope:
        angles = rotary_angles(cells, cells, network.width // network.heads)
        for name, value in zip(("freqs_cos", "freqs_sin"), angles, strict=True):
            table.constants[f"feat_rope.{name}"] = value.repeat_interleave(2, dim=1)
    return table
