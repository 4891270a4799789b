"""The shapes of our convolutional autoencoders as configs of diffusers' AutoencoderKL and VQModel,
and back."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ldm.interop.autoencoder import Convolutional
from ldm.interop.files import refuse_unless
from ldm.models import KLAutoencoder, QuantisedAutoencoder, VectorQuantizer

DIFFUSERS_CLASS = "AutoencoderKL"
VQ_CLASS = "VQModel"
PATCHED_CLASS = "PatchedAutoencoderKL"
PATCHED_MODULE = "ldm_patched_autoencoder"


def _learned(part: nn.Module) -> bool:
    """Whether something stands there, and not the identity in its place."""
    return any(True for _ in part.parameters())


def _shape(network: Convolutional, size: int, scale: float) -> dict[str, Any]:
    """What the configs of both of diffusers' classes say."""
    encoder: Any = network.encoder
    attention = [_learned(level.attentions) for level in encoder.levels]
    return {
        "in_channels": network.image_channels,
        "out_channels": network.image_channels,
        "down_block_types": [
            "AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attention
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in reversed(attention)
        ],
        "block_out_channels": [level.blocks[-1].conv2.out_channels for level in encoder.levels],
        "layers_per_block": len(encoder.levels[0].blocks),
        "latent_channels": network.latent_channels,
        "norm_num_groups": encoder.norm_out.num_groups,
        "sample_size": size,
        "scaling_factor": scale,
        "mid_block_add_attention": _learned(encoder.middle[1]),
    }


def _refuse_folding(network: Convolutional, what: str) -> None:
    if network.encoder.patch > 1:
        raise ValueError(
            f"diffusers' {what} folds no pixels into channels, and this autoencoder has "
            f"patch={network.encoder.patch}: train one with autoencoder.patch=1"
        )


def autoencoder_to_diffusers(
    network: KLAutoencoder, size: int, *, scale: float = 1.0, patched: bool = False
) -> dict[str, Any]:
    """The config of the AutoencoderKL that computes the same, for pictures of `size`; `scale` is
    what it multiplies latents with.

    ValueError names what diffusers cannot express. With `patched`, folded pixels are expressed by
    the class in `ldm.interop.patched`, whose source is written beside the weights.
    """
    patch = network.encoder.patch
    if not (patched and patch & (patch - 1) == 0):
        _refuse_folding(network, DIFFUSERS_CLASS)
    # StableDiffusion3Pipeline adds the shift without asking whether there is one.
    config = {"_class_name": DIFFUSERS_CLASS, **_shape(network, size, scale), "shift_factor": 0.0}
    widths = config["block_out_channels"]
    if patch > 1:
        foldings = patch.bit_length() - 1
        return config | {
            "_class_name": PATCHED_CLASS,
            "block_out_channels": [widths[0]] * foldings + widths,
            "patch": patch,
            # So that diffusers' AutoModel finds the class, which is written beside.
            "auto_map": {"AutoModel": f"{PATCHED_MODULE}.{PATCHED_CLASS}"},
        }
    convolutions = _learned(network.to_moments)
    return config | {
        "use_quant_conv": convolutions,
        "use_post_quant_conv": convolutions,
        "force_upcast": False,
    }


def quantised_to_diffusers(
    network: QuantisedAutoencoder, size: int, *, scale: float = 1.0
) -> dict[str, Any]:
    """The config of the VQModel that computes the same. ValueError names what it cannot express."""
    quantizer = network.quantizer
    if not isinstance(quantizer, VectorQuantizer) or quantizer.cosine:
        raise ValueError(
            f"diffusers' {VQ_CLASS} knows the nearest entry of a codebook only, and this "
            "autoencoder has a quantizer of another kind: use --to safetensors"
        )
    _refuse_folding(network, VQ_CLASS)
    return {
        "_class_name": VQ_CLASS,
        **_shape(network, size, scale),
        "num_vq_embeddings": quantizer.entries,
        "vq_embed_dim": quantizer.channels,
    }


def quantised_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our autoencoder with, for the shape that a VQModel's config tells; the
    quantizer as a node. ValueError names the settings that ours does not have."""
    channels = config.get("latent_channels", 3)
    only = {"norm_type": "group", "lookup_from_codebook": False}
    refuse_unless(config, only, VQ_CLASS)
    if config.get("vq_embed_dim") not in (None, channels):
        raise ValueError(
            f"this {VQ_CLASS} cannot be expressed here: vq_embed_dim={config['vq_embed_dim']} "
            f"(only latent_channels={channels})"
        )
    arguments = autoencoder_arguments(config)
    del arguments["latent_channels"], arguments["latent_convolutions"]
    quantizer = {
        "_target_": "ldm.models.VectorQuantizer",
        "entries": config.get("num_vq_embeddings", 256),
        "channels": channels,
    }
    return {"quantizer": quantizer, **arguments}


def autoencoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to build our autoencoder with, for the shape that an AutoencoderKL's config tells.

    ValueError names the settings that ours does not have.
    """
    refuse_unless(
        config, {"act_fn": "silu", "latents_mean": None, "latents_std": None}, DIFFUSERS_CLASS
    )
    patch = config.get("patch", 1)  # of the class that `ldm export` writes
    widths = list(config.get("block_out_channels", [64]))[patch.bit_length() - 1 :]
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
    } | ({"patch": patch} if patch > 1 else {})


def latent_scale(config: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard deviation of all latent channels, as an AutoencoderKL's config has them."""
    return config.get("shift_factor") or 0.0, 1 / config.get("scaling_factor", 0.18215)
