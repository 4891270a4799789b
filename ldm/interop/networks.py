"""Any denoising network of diffusers that has a counterpart here."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.interop.dit import DIFFUSERS_CLASS as DIT_CLASS
from ldm.interop.dit import diffusers_dit_table, dit_arguments
from ldm.interop.mmdit import DIFFUSERS_CLASS as MMDIT_CLASS
from ldm.interop.mmdit import mmdit_arguments, mmdit_table
from ldm.interop.unet import diffusers_names, unet_table
from ldm.interop.unet_configs import DIFFUSERS_CLASS as UNET_CLASS
from ldm.interop.unet_configs import unet_arguments
from ldm.models import DiT, MMDiT, UNet

NETWORK_CLASSES = (UNET_CLASS, DIT_CLASS, MMDIT_CLASS)
N = TypeVar("N", bound=nn.Module)


def network_class(config: Mapping[str, Any]) -> str | None:
    """The class that a config names, under its present name: that of DiT's published pipelines is
    from before diffusers gave it one of its own."""
    kind: str | None = config.get("_class_name")
    if kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        return DIT_CLASS
    return kind


def network_from_diffusers(
    config: Mapping[str, Any], state: Mapping[str, Tensor], source: str, *, flow: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, and the arguments that build it. `flow`: the scheduler beside
    it tells it 1000 t, where one of a table tells the number of a step, which is 1 less.

    ValueError for a class without counterpart, a setting that ours does not have, or tensors that
    do not fit. Memory is taken once: the network is built without numbers and given the tensors.
    """
    kind = network_class(config)
    told = {"time_offset": 0.0} if flow else {}
    network: nn.Module
    if kind == UNET_CLASS:
        arguments = unet_arguments(config) | told
        network = unet = _blank(UNet, arguments)
        convolutions = any(
            name.endswith("proj_in.weight") and value.ndim == 4 for name, value in state.items()
        )
        table = unet_table(unet, diffusers_names(config), convolutions=convolutions)
    elif kind == DIT_CLASS:
        arguments = dit_arguments(config) | told
        network = dit = _blank(DiT, arguments)
        table = diffusers_dit_table(dit)
    elif kind == MMDIT_CLASS:
        arguments = mmdit_arguments(config)
        network = mmdit = _blank(MMDiT, arguments)
        table = mmdit_table(mmdit, config.get("sample_size", 128))
    else:
        raise ValueError(
            f"{source}: {kind} is no network that is known here; known are "
            f"{', '.join(NETWORK_CLASSES)}"
        )
    network.load_state_dict(table.take(state, source), assign=True)
    return network, arguments


def _blank(kind: type[N], arguments: Mapping[str, Any]) -> N:
    with torch.device("meta"):
        return kind(**arguments)
