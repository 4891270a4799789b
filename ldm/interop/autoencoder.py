"""The KL autoencoder's weights under the names of diffusers and of CompVis.

Diffusers knows one scale for all latent channels and CompVis one number as well, where ours
are normalised channel by channel. The 1x1 convolutions beside the latents take that in exactly,
see `folded`, so that the other side's scale is 1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.interop.files import refuse_unless
from ldm.interop.links import Table
from ldm.models import KLAutoencoder

DIFFUSERS_CLASS = "AutoencoderKL"
PATCHED_CLASS = "PatchedAutoencoderKL"


def autoencoder_table(network: KLAutoencoder) -> Table:
    """Diffusers' names."""
    table = Table(network)
    for side in ("encoder", "decoder"):
        _ends(table, side, norm_out="conv_norm_out")
        for index in (0, 2):
            _residual(
                table, f"{side}.middle.{index}", f"{side}.mid_block.resnets.{index // 2}", "conv"
            )
        _attention(table, f"{side}.middle.1", f"{side}.mid_block.attentions.0")
        down = side == "encoder"
        for level, index, there in _blocks(network, side):
            other = f"{side}.{'down' if down else 'up'}_blocks.{level}"
            _residual(table, f"{there}.blocks.{index}", f"{other}.resnets.{index}", "conv")
            _attention(table, f"{there}.attentions.{index}", f"{other}.attentions.{index}")
        for level in range(len(network.encoder.resamples)):
            other = f"down_blocks.{level}.downsamplers" if down else f"up_blocks.{level}.upsamplers"
            table.same(f"{side}.resamples.{level}.conv", f"{side}.{other}.0.conv")
    _latent_convolutions(table)
    return table


def compvis_autoencoder_table(network: KLAutoencoder) -> Table:
    """CompVis' names, without `first_stage_model.`: its attention projects by convolutions, and
    its decoder counts levels from the finest."""
    table = Table(network)
    last = len(network.encoder.levels) - 1
    for side in ("encoder", "decoder"):
        _ends(table, side, norm_out="norm_out")
        _residual(table, f"{side}.middle.0", f"{side}.mid.block_1", "nin")
        _attention(table, f"{side}.middle.1", f"{side}.mid.attn_1", convolutions=True)
        _residual(table, f"{side}.middle.2", f"{side}.mid.block_2", "nin")
        down = side == "encoder"
        for level, index, there in _blocks(network, side):
            other = f"{side}.down.{level}" if down else f"{side}.up.{last - level}"
            _residual(table, f"{there}.blocks.{index}", f"{other}.block.{index}", "nin")
            _attention(
                table, f"{there}.attentions.{index}", f"{other}.attn.{index}", convolutions=True
            )
        for level in range(last):
            other = f"down.{level}.downsample" if down else f"up.{last - level}.upsample"
            table.same(f"{side}.resamples.{level}.conv", f"{side}.{other}.conv")
    _latent_convolutions(table)
    return table


def _ends(table: Table, side: str, *, norm_out: str) -> None:
    table.same(f"{side}.conv_in", f"{side}.conv_in")
    table.same(f"{side}.norm_out", f"{side}.{norm_out}")
    table.same(f"{side}.conv_out", f"{side}.conv_out")


def _latent_convolutions(table: Table) -> None:
    if "to_moments.weight" in table.shapes:
        table.same("to_moments", "quant_conv")
        table.same("from_latent", "post_quant_conv")


def _blocks(network: KLAutoencoder, side: str) -> list[tuple[int, int, str]]:
    """(level, index of the block, our name of the level), in order."""
    levels: Any = network.encoder.levels if side == "encoder" else network.decoder.levels
    return [
        (level, index, f"{side}.levels.{level}")
        for level, module in enumerate(levels)
        for index in range(len(module.blocks))
    ]


def _residual(table: Table, ours: str, theirs: str, shortcut: str) -> None:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        table.same(f"{ours}.{part}", f"{theirs}.{part}")
    if f"{ours}.shortcut.weight" in table.shapes:
        table.same(f"{ours}.shortcut", f"{theirs}.{shortcut}_shortcut")


def _attention(table: Table, ours: str, theirs: str, *, convolutions: bool = False) -> None:
    if f"{ours}.query.weight" not in table.shapes:
        return
    names = ("norm", "q", "k", "v", "proj_out")
    if not convolutions:
        names = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    table.same(f"{ours}.norm", f"{theirs}.{names[0]}")
    project = table.pointwise if convolutions else table.same
    for part, name in zip(("query", "key", "value", "out"), names[1:], strict=True):
        project(f"{ours}.{part}", f"{theirs}.{name}")


def with_new_attention_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The attention of an AutoencoderKL saved before diffusers 0.15, under its present names."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for name, value in state.items():
        *path, part, leaf = name.split(".")
        if "attentions" in path and part in old:
            name = ".".join([*path, old[part], leaf])
        renamed[name] = value
    return renamed


def _learned(part: nn.Module) -> bool:
    """Whether something stands there, and not the identity in its place."""
    return any(True for _ in part.parameters())


def autoencoder_to_diffusers(
    network: KLAutoencoder, size: int, *, scale: float = 1.0, patched: bool = False
) -> dict[str, Any]:
    """The config of the AutoencoderKL that computes the same, for pictures of `size`; `scale` is
    what it multiplies latents with.

    ValueError names what diffusers cannot express. With `patched`, folded pixels are expressed by
    `ldm.interop.patched`, which needs this package where it is loaded.
    """
    encoder: Any = network.encoder
    patch: int = encoder.patch
    if patch > 1 and not (patched and patch & (patch - 1) == 0):
        raise ValueError(
            f"diffusers' AutoencoderKL folds no pixels into channels, and this autoencoder has "
            f"patch={patch}: train one with autoencoder.patch=1"
        )
    attention = [_learned(level.attentions) for level in encoder.levels]
    widths = [level.blocks[-1].conv2.out_channels for level in encoder.levels]
    config = {
        "_class_name": DIFFUSERS_CLASS,
        "in_channels": network.image_channels,
        "out_channels": network.image_channels,
        "down_block_types": [
            "AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attention
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in reversed(attention)
        ],
        "block_out_channels": widths,
        "layers_per_block": len(encoder.levels[0].blocks),
        "latent_channels": network.latent_channels,
        "norm_num_groups": encoder.norm_out.num_groups,
        "sample_size": size,
        "scaling_factor": scale,
        "mid_block_add_attention": _learned(encoder.middle[1]),
    }
    if patch > 1:
        foldings = patch.bit_length() - 1
        return config | {
            "_class_name": PATCHED_CLASS,
            "block_out_channels": [widths[0]] * foldings + widths,
            "patch": patch,
        }
    convolutions = _learned(network.to_moments)
    return config | {
        "use_quant_conv": convolutions,
        "use_post_quant_conv": convolutions,
        "force_upcast": False,
    }


def autoencoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our autoencoder with, for the shape that an AutoencoderKL's config tells.

    ValueError names the settings that ours does not have.
    """
    refuse_unless(
        config, {"act_fn": "silu", "latents_mean": None, "latents_std": None}, DIFFUSERS_CLASS
    )
    widths = list(config.get("block_out_channels", [64]))
    kinds = list(config.get("down_block_types", ["DownEncoderBlock2D"] * len(widths)))
    ups = list(config.get("up_block_types", ["UpDecoderBlock2D"] * len(widths)))
    mirrored = [kind.replace("DownEncoder", "UpDecoder") for kind in reversed(kinds)]
    known = {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}
    convolutions = {config.get("use_quant_conv", True), config.get("use_post_quant_conv", True)}
    mirrored = [kind.replace("AttnDown", "AttnUp") for kind in mirrored]
    if set(kinds) - known or ups != mirrored or len(convolutions) > 1:
        raise ValueError(
            f"this {DIFFUSERS_CLASS} cannot be expressed here: down_block_types={kinds}, "
            f"up_block_types={ups}, use_quant_conv={config.get('use_quant_conv')} (each level is "
            f"one of {sorted(known)}, the decoder mirrors the encoder, both convolutions or none)"
        )
    width = math.gcd(*widths)
    return {
        "latent_channels": config.get("latent_channels", 4),
        "width": width,
        "multipliers": [w // width for w in widths],
        "blocks": config.get("layers_per_block", 1),
        "attention_levels": [i for i, kind in enumerate(kinds) if kind.startswith("Attn")],
        "middle_attention": config.get("mid_block_add_attention", True),
        "groups": config.get("norm_num_groups", 32),
        "image_channels": config.get("in_channels", 3),
        "latent_convolutions": convolutions.pop(),
    }


def latent_scale(config: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard deviation of all latent channels, as an AutoencoderKL's config has them."""
    return config.get("shift_factor") or 0.0, 1 / config.get("scaling_factor", 0.18215)


def folded(
    state: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """The state of the same autoencoder whose latents are normalised: (latent - mean) / std.

    z = W h + b becomes (W h + b - mean) / std on the way in, and W (std z + mean) + b on the way
    out; a log variance loses 2 log std. Where there were no convolutions, the identity is folded.
    """
    channels = len(mean)
    centre = torch.tensor(mean, dtype=torch.float64)
    scale = torch.tensor(std, dtype=torch.float64)
    result = dict(state)

    def convolution(name: str, width: int) -> tuple[Tensor, Tensor]:
        weight = state.get(f"{name}.weight", torch.eye(width)[..., None, None]).double()
        return weight, state.get(f"{name}.bias", torch.zeros(width)).double()

    weight, bias = convolution("to_moments", 2 * channels)
    rows = torch.cat([1 / scale, torch.ones_like(scale)])
    result["to_moments.weight"] = rows[:, None, None, None] * weight
    result["to_moments.bias"] = torch.cat(
        [(bias[:channels] - centre) / scale, bias[channels:] - 2 * scale.log()]
    )
    weight, bias = convolution("from_latent", channels)
    result["from_latent.weight"] = weight * scale[None, :, None, None]
    result["from_latent.bias"] = bias + weight[..., 0, 0] @ centre
    dtype = state["decoder.conv_in.weight"].dtype
    return {name: value.to(dtype) for name, value in result.items()}
