"""The pixel-folding autoencoder of `ldm` as a diffusers model.

Diffusers has no class that could compute the same: no stack of its layers knows in which corner of
a folded cell a pixel stands. `ldm export` writes this file beside the weights, where
`from_pretrained(..., trust_remote_code=True)` finds it, so that nothing of `ldm` is needed there.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from diffusers import AutoencoderKL, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

# diffusers loads a class as a model when the module that it is in has a ModelMixin above it.
__all__ = ["ModelMixin", "PatchedAutoencoderKL"]


class PatchedAutoencoderKL(AutoencoderKL):  # type: ignore[misc]  # diffusers is untyped here
    """AutoencoderKL on pictures whose patch x patch pixels are folded into channels first.

    `block_out_channels` has an entry for every halving, also those that the folding does, since
    pipelines count them; the entries of the folding build nothing.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # diffusers builds a model from exactly its constructor's names
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        mid_block_add_attention: bool = True,
        patch: int = 2,
    ) -> None:
        folded = patch.bit_length() - 1
        super().__init__(
            in_channels=in_channels * patch**2,
            out_channels=out_channels * patch**2,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels[folded:],
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            force_upcast=False,
            mid_block_add_attention=mid_block_add_attention,
        )
        # The constructor above recorded its own view of these.
        self.register_to_config(
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=block_out_channels,
        )

    def _encode(self, x: Tensor) -> Tensor:
        return super()._encode(F.pixel_unshuffle(x, self.config.patch))

    def _decode(self, z: Tensor, return_dict: bool = True) -> Any:
        decoded = super()._decode(z, return_dict=False)[0]
        picture = F.pixel_shuffle(decoded, self.config.patch)
        return DecoderOutput(sample=picture) if return_dict else (picture,)
