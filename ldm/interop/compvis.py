"""Whole checkpoints of CompVis and Stability: one file, a prefix for each part."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ldm.interop.unet_configs import channels_in

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
TEXT = "cond_stage_model.model."  # open_clip's own names stand behind it, as in SD 2.x
OPENAI_TEXT = "cond_stage_model.transformer."  # transformers' names, as in SD 1.x


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part, without its prefix; all of them where no name has a prefix."""
    if not any(name.startswith((UNET, FIRST_STAGE)) for name in state):
        return dict(state)
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _depth(state: Mapping[str, Tensor], name: str) -> int:
    """Transformer layers of one block."""
    return len(_numbers(state, f"{name}.transformer_blocks."))


def _numbers(state: Mapping[str, Tensor], prefix: str) -> set[int]:
    """The numbers that stand behind a prefix."""
    behind = (name.removeprefix(prefix) for name in state if name.startswith(prefix))
    return {int(rest.split(".")[0]) for rest in behind}


def _levels(state: Mapping[str, Tensor]) -> Iterator[tuple[int, int, int]]:
    """(level, channels, depth) of each block on the way down."""
    level = 0
    for number in sorted(_numbers(state, "input_blocks."))[1:]:
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in state:
            level += 1
        else:
            yield (
                level,
                state[f"{block}.0.in_layers.2.weight"].shape[0],
                _depth(state, f"{block}.1"),
            )


def unet_arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What to build our U-Net with, read off the tensors themselves.

    The number of heads leaves no trace in them: it is 8 where transformers project by convolutions
    (SD 1.x), and one for every 64 channels elsewhere (SD 2.x, SDXL). ValueError where the file
    holds no U-Net of this family.
    """
    if "input_blocks.0.0.weight" not in state or "middle_block.1.proj_in.weight" not in state:
        raise ValueError(
            "no U-Net of latent diffusion is in this checkpoint: input_blocks.0.0.weight and "
            "middle_block.1.proj_in.weight are not there"
        )
    blocks = list(_levels(state))
    levels = max(level for level, _, _ in blocks) + 1
    channels = [next(c for here, c, _ in blocks if here == level) for level in range(levels)]
    convolutions = projects_by_convolutions(state)
    pooled = state.get("label_emb.0.0.weight")
    text = state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    return {
        **channels_in(state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]),
        "text_width": text,
        "channels": channels,
        "depths": [next(d for here, _, d in blocks if here == level) for level in range(levels)],
        "heads": [8 if convolutions else max(1, width // 64) for width in channels],
        "middle_depth": _depth(state, "middle_block.1"),
        "residual_blocks": sum(1 for here, _, _ in blocks if here == 0),
        "out_channels": state["out.2.weight"].shape[0],
        "pooled_width": 0 if pooled is None else pooled.shape[1],
        "attend_padding": True,
        "time_offset": -1.0,
    }


def projects_by_convolutions(state: Mapping[str, Tensor]) -> bool:
    """Whether transformers are entered and left by 1x1 convolutions."""
    return state["middle_block.1.proj_in.weight"].ndim == 4


def autoencoder_arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What to build our autoencoder with, read off the tensors; with a codebook the quantizer
    stands among them as a node. ValueError where there is no autoencoder."""
    if "encoder.conv_in.weight" not in state:
        raise ValueError(
            "no autoencoder is in this checkpoint: encoder.conv_in.weight is not there"
        )
    levels = sorted(_numbers(state, "encoder.down."))
    width = state["encoder.conv_in.weight"].shape[0]
    channels = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in levels]
    if odd := [c for c in channels if c % width]:
        raise ValueError(f"levels of {odd} channels are no multiples of the first {width}")
    shape: dict[str, Any] = {
        "width": width,
        "multipliers": [c // width for c in channels],
        "blocks": len(_numbers(state, "encoder.down.0.block.")),
        "attention_levels": [i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in state],
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "image_channels": state["encoder.conv_in.weight"].shape[1],
    }
    if (book := state.get("quantize.embedding.weight")) is not None:
        entries, size = book.shape
        target = "ldm.models.VectorQuantizer"
        return {"quantizer": {"_target_": target, "entries": entries, "channels": size}} | shape
    return {
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "latent_convolutions": "quant_conv.weight" in state,
        **shape,
    }
