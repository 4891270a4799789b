"""How close reconstructions come to their pictures. Each is a mean over pictures, so that neither
batch size nor ranks change it."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ldm.metrics.means import PictureMean


@runtime_checkable
class PairDistance(Protocol):
    """A frozen network that compares pictures."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """`[b]` from two batches of pictures in [-1, 1]."""

    def to(self, device: torch.device) -> object:
        """Moves the network."""


Picture = Float[Tensor, "b C H W"]  # in [-1, 1]; values outside are clamped first


class PairMetric(PictureMean):
    """The mean over pictures of a number that `measure` gives for each pair."""

    higher_is_better: bool | None = True
    name: str

    def measure(self, made: Picture, wanted: Picture) -> Float[Tensor, "b"]:
        """One number a pair."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, made: Picture, wanted: Picture) -> None:  # type: ignore[override]
        """Takes in reconstructions and their pictures, both [-1, 1]."""
        with torch.autocast(made.device.type, enabled=False):
            numbers = self.measure(made.float().clamp(-1, 1), wanted.float().clamp(-1, 1))
        super().update(numbers)


class PSNR(PairMetric):
    """Peak signal-to-noise ratio in dB, each picture's own; 100 at most, for equal pictures."""

    name = "psnr"

    def measure(self, made: Picture, wanted: Picture) -> Float[Tensor, "b"]:
        """10 log10(2^2 / mean squared error)."""
        return psnr(made, wanted)


class LearnedDistance(PairMetric):
    """What a network made to judge pairs of pictures says of them, such as LPIPS on VGG16 (Zhang et
    al. 2018), which is commonly told as just "LPIPS"; less is better."""

    higher_is_better = False

    def __init__(self, distance: PairDistance, name: str) -> None:
        super().__init__()
        self.distance, self.name = distance, name

    def measure(self, made: Picture, wanted: Picture) -> Float[Tensor, "b"]:
        """The network's numbers; it moves to the pictures' device."""
        self.distance.to(made.device)
        return self.distance(made, wanted)


class SSIM(PairMetric):
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5."""

    name = "ssim/gaussian-11"

    def measure(self, made: Picture, wanted: Picture) -> Float[Tensor, "b"]:
        """Mean over positions at which the window fits, and over channels."""
        return ssim(made, wanted)


def psnr(made: Picture, wanted: Picture) -> Float[Tensor, "b"]:
    """In dB with a peak of 2, the range of [-1, 1]."""
    error = (made - wanted).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=4e-10))


def ssim(made: Picture, wanted: Picture) -> Float[Tensor, "b"]:
    """Equations 13 of Wang et al. with K1 = 0.01, K2 = 0.03 and a range of 2; sides >= 11."""
    if min(made.shape[2:]) < 11:
        raise ValueError(
            f"SSIM looks through a window of 11 pixels, pictures are {list(made.shape[2:])}: "
            "use larger ones, or PSNR"
        )
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    x, y = made.double(), wanted.double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x.square()
    variance_y = _blurred(y * y) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness /= (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    return likeness.mean(dim=(1, 2, 3)).float()


def _blurred(x: Picture) -> Float[Tensor, "b C h w"]:
    """A Gaussian of sigma 1.5 over 11 x 11 pixels, where it fits."""
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (window / window.sum()).repeat(x.shape[1], 1)
    x = F.conv2d(x, window[:, None, :, None], groups=x.shape[1])
    return F.conv2d(x, window[:, None, None, :], groups=x.shape[1])
