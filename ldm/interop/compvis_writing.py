"""Checkpoints as CompVis and Stability write them, of our parts."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ldm.interop import compvis
from ldm.interop.autoencoder import compvis_autoencoder_table, folded
from ldm.interop.first_stage import FirstStage, needs_kl, with_latent_convolutions
from ldm.interop.text import Text, Tower
from ldm.interop.unet import COMPVIS, unet_table
from ldm.models import UNet
from ldm.tensor_files import write_tensors


def write_compvis(
    folder: Path, network: nn.Module | None, *, first: FirstStage, text: Text | None
) -> None:
    """model.safetensors with `first_stage_model.*`, and where they are given
    `model.diffusion_model.*` and `cond_stage_model.*`, for latents that need no scale: an
    open_clip tower as Stable Diffusion 2.x has it, a CLIPTextModel as 1.x does. ValueError names
    what CompVis' code cannot express."""
    autoencoder = needs_kl(first, "CompVis' code")
    if autoencoder.encoder.patch > 1:
        raise ValueError(
            "CompVis' autoencoder folds no pixels into channels, and this one has "
            f"patch={autoencoder.encoder.patch}: train one with autoencoder.patch=1"
        )
    groups = {autoencoder.encoder.norm_out.num_groups}
    if isinstance(network, UNet):
        groups.add(network.groups)
    if groups != {32}:
        raise ValueError(
            f"CompVis' code normalises in 32 groups, and these networks in {sorted(groups)}: "
            "train with groups=32"
        )
    table = compvis_autoencoder_table(with_latent_convolutions(autoencoder))
    state = folded(autoencoder.state_dict(), first.mean, first.std)
    parts: dict[str, Mapping[str, Tensor]] = {compvis.FIRST_STAGE: table.give(state)}
    if network is not None:
        if not isinstance(network, UNet):
            raise ValueError(
                f"CompVis' checkpoints hold a U-Net, and this network is a "
                f"{type(network).__name__}: use --to safetensors"
            )
        convolutions = _convolutions(network)
        parts[compvis.UNET] = unet_table(network, COMPVIS, convolutions=convolutions).give(
            network.state_dict()
        )
    if text is not None:
        prefix, encoder = _text(text)
        parts[prefix] = encoder
    folder.mkdir(parents=True, exist_ok=True)
    whole = {prefix + name: v for prefix, part in parts.items() for name, v in part.items()}
    write_tensors(folder / "model.safetensors", whole)


def _convolutions(network: UNet) -> bool:
    """Whether transformers are entered by convolutions, as in Stable Diffusion 1.x. Readers tell by
    that how many heads there are, since the tensors do not say: 8, or one for every 64 channels."""
    heads = list(network.heads)
    if heads == [max(1, width // 64) for width in network.channels]:
        return False
    if set(heads) == {8}:
        return True
    raise ValueError(
        f"a CompVis checkpoint does not say how many heads attention has: readers take 8, or one "
        f"for every 64 channels, and backbone.heads={heads} with backbone.channels="
        f"{list(network.channels)} is neither: use --to diffusers or safetensors"
    )


def _text(text: Text) -> tuple[str, dict[str, Tensor]]:
    """The prefix, and the tensors with memory of their own."""
    if isinstance(text, Tower):
        state = {n: v for n, v in text.model.state_dict().items() if not n.startswith("visual.")}
        return compvis.TEXT, {n: v.clone() for n, v in state.items()}
    if text.kind != "CLIPTextModel":
        raise ValueError(
            f"CompVis' checkpoints hold a CLIP text encoder, and this is a {text.kind}: use --to "
            "safetensors"
        )
    # Present-day transformers leaves out the model's own prefix.
    state = {
        n if n.startswith("text_model.") else f"text_model.{n}": v.clone()
        for n, v in text.model.state_dict().items()
    }
    return compvis.OPENAI_TEXT, state
