"""LPIPS: a frozen VGG16, and the channel weights that people's judgements taught."""

from importlib import resources
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import vgg16

from ldm.models.perceptual import unit_difference
from ldm.types import Image

_LAST_OF_STAGE = (3, 8, 15, 22, 29)  # the last activation before each pooling of VGG16
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018) on the VGG16 of a local file.

    `weights` is torchvision's `vgg16-397923af.pth`; the channel weights are those that torchmetrics
    ships. The file is read when the distance is first used. Pictures of 16 pixels a side or more.
    """

    def __init__(self, weights: str) -> None:
        self.weights = Path(weights)
        self._layers: nn.Sequential | None = None
        self._heads: list[Tensor] = []
        self._mean = torch.tensor(_MEAN)[:, None, None]
        self._std = torch.tensor(_STD)[:, None, None]

    def to(self, device: torch.device) -> "LPIPS":
        """Reads the file when that is still to be done, and moves everything; returns itself."""
        if self._layers is None:
            self._layers, self._heads = _vgg(self.weights), _channel_weights()
        self._layers.to(device)
        self._heads = [head.to(device) for head in self._heads]
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def __call__(self, a: Image, b: Image) -> Float[Tensor, "b"]:
        """Sum over five stages of the weighted squared difference of unit vectors."""
        self.to(a.device)
        total = torch.zeros(len(a), device=a.device)
        for x, y, head in zip(self._stages(a), self._stages(b), self._heads, strict=True):
            total = total + (unit_difference(x, y) * head).sum(dim=1).mean(dim=(1, 2))
        return total

    def _stages(self, image: Image) -> list[Tensor]:
        assert self._layers is not None
        x = ((image + 1) / 2 - self._mean) / self._std
        stages = []
        for number, layer in enumerate(self._layers):
            x = layer(x)
            if number in _LAST_OF_STAGE:
                stages.append(x)
        return stages


def _vgg(path: Path) -> nn.Sequential:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: LPIPS needs torchvision's VGG16 weights there; put vgg16-397923af.pth (from "
            "download.pytorch.org/models) at this path, set module.loss.perceptual.weights to "
            "where it is, or take loss=l1, which needs no other network"
        )
    network = vgg16()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, UnpicklingError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: these are not torchvision's VGG16 weights (vgg16-397923af.pth): name that "
            "file in module.loss.perceptual.weights, or take loss=l1"
        ) from error
    layers = network.features[: _LAST_OF_STAGE[-1] + 1]
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the stages are kept
    return layers.eval().requires_grad_(False)


def _channel_weights() -> list[Tensor]:
    """`[1 c 1 1]` for each stage."""
    file = resources.files("torchmetrics") / "functional/image/lpips_models/vgg.pth"
    with resources.as_file(file) as path:
        heads = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{stage}.model.1.weight"] for stage in range(len(_LAST_OF_STAGE))]
