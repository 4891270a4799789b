"""The convolutional autoencoders' weights under the names of diffusers and of CompVis.

Diffusers knows one scale for all latent channels and CompVis one number as well, where ours
are normalised channel by channel. The 1x1 convolutions beside the latents take that in exactly,
see `folded`, so that the other side's scale is 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.interop.links import State, Table
from ldm.models import KLAutoencoder, QuantisedAutoencoder

Convolutional = KLAutoencoder | QuantisedAutoencoder
_COUNTED = ("quantizer.counts", "quantizer.updates")  # of a codebook's training, which is ours


def autoencoder_table(network: Convolutional) -> Table:
    """Diffusers' names."""
    table = Table(network, _COUNTED)
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


def compvis_autoencoder_table(network: Convolutional) -> Table:
    """CompVis' names, without `first_stage_model.`: its attention projects by convolutions, and
    its decoder counts levels from the finest."""
    table = Table(network, _COUNTED)
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
    if "to_latent.weight" in table.shapes:
        table.same("to_latent", "quant_conv")
        table.stacked("quantizer.codebook", "quantize.embedding.weight")
    if "from_latent.weight" in table.shapes:
        table.same("from_latent", "post_quant_conv")


def load_autoencoder(network: Convolutional, table: Table, state: State, source: str) -> None:
    """Fill the network whole or not at all. A codebook counts as long in use, so that training on
    does not begin by placing its entries anew."""
    taken = table.take(state, source)
    if "quantizer.codebook" in taken:
        taken["quantizer.counts"] = torch.full(taken["quantizer.codebook"].shape[:1], 1e4)
        taken["quantizer.updates"] = torch.tensor(1)
    network.load_state_dict(taken)


def _blocks(network: Convolutional, side: str) -> list[tuple[int, int, str]]:
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
