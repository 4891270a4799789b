"""Low-rank weights in the format that diffusers and PEFT share."""

from pathlib import Path

from torch import Tensor, nn

from ldm.interop.dit import diffusers_dit_table
from ldm.interop.links import Table
from ldm.interop.mmdit import mmdit_table
from ldm.interop.unet import DIFFUSERS, DIFFUSERS_CLASSES, unet_table
from ldm.models import DiT, MMDiT, UNet
from ldm.models.lora import lora_layers
from ldm.tensor_files import write_tensors

FILE = "pytorch_lora_weights.safetensors"


def lora_to_diffusers(network: nn.Module, table: Table) -> dict[str, Tensor]:
    """`MODULE.lora_A.weight` and `MODULE.lora_B.weight` of every layer that was adapted, under the
    names of `table`, which is that of the same network before `add_lora`.

    A fused layer of ours becomes several of theirs, which share A and divide the rows of B: the
    same difference. The scale goes into B, so that alpha is the rank, which is what is assumed
    where no alpha is saved.
    """
    links = {link.ours: link for link in table.links}
    state: dict[str, Tensor] = {}
    for path, layer in lora_layers(network).items():
        link = links[f"{path}.weight"]
        parts = link.give(layer.scale * layer.up.detach())
        for name, rows in zip(link.theirs, parts, strict=True):
            if rows.ndim != 2:
                raise ValueError(
                    f"{name} is a convolution on the other side, where LoRA is another: "
                    "write the table with convolutions=False"
                )
            module = name.removesuffix(".weight")
            state[f"{module}.lora_A.weight"] = layer.down.detach().clone()
            state[f"{module}.lora_B.weight"] = rows.clone().contiguous()
    return state


def write_lora(folder: Path, network: nn.Module, table: Table, component: str) -> None:
    """The file that a pipeline's `load_lora_weights` reads; `component` is "unet" or
    "transformer"."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"{component}.{n}": v for n, v in lora_to_diffusers(network, table).items()}
    write_tensors(folder / FILE, state)


def network_table(network: nn.Module) -> Table:
    """Diffusers' names for a network before `add_lora`. ValueError where it has no counterpart."""
    match network:
        case UNet():
            classes = 0 < network.pooled_width <= 6 * 256
            names = DIFFUSERS_CLASSES if classes else DIFFUSERS
            return unet_table(network, names, convolutions=False)
        case MMDiT():
            return mmdit_table(network, 2 * network.patch)  # positions are not adapted
        case DiT() if network.classes and not network.swiglu:
            return diffusers_dit_table(network)
    raise ValueError(
        f"diffusers has no counterpart of this {type(network).__name__}, so that there are no "
        "names for its low-rank weights: use --to safetensors"
    )


def component_of(network: nn.Module) -> str:
    """What a pipeline calls the network."""
    return "unet" if isinstance(network, UNet) else "transformer"
