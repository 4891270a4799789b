"""The Inception v3 that TensorFlow released on 2015-12-05, whose features define FID.

It differs from torchvision's in three places: average pooling does not count the padding, the last
block pools by maximum, and there are 1008 classes. Parameters bear torchvision's names, so the
converted weights that the field shares load as they are. The network is a table: each block lists
its branches, each branch its layers.
"""

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

from ldm.metrics import cache_folder

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


class _Layer(NamedTuple):
    """A convolution: its name in the block, channels, kernel; strided ones have no padding."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


_Branch = list[_Layer | tuple[_Layer, _Layer]]  # a pair forks, and its two results are joined
_Pool = Literal["average", "maximum", "halve"]


class _Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, layer: _Layer, padding: tuple[int, int] | None = None) -> None:
        super().__init__()
        rows, columns = layer.kernel
        same = (rows // 2, columns // 2) if layer.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(
            inputs,
            layer.channels,
            layer.kernel,
            layer.stride,
            same if padding is None else padding,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(layer.channels, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """The layer's activations."""
        return relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side, joined along the channels; the pooling branch comes last."""

    def __init__(self, inputs: int, branches: list[_Branch], pool: _Pool, pooled: int) -> None:
        super().__init__()
        self.pool: _Pool = pool
        self.branches = branches
        for branch in branches:
            channels = inputs
            for step in branch:
                layers = step if not isinstance(step, _Layer) else (step,)
                for layer in layers:
                    self.add_module(layer.name, _Convolution(channels, layer))
                channels = sum(layer.channels for layer in layers)
        if pooled:
            self.branch_pool = _Convolution(inputs, _Layer("branch_pool", pooled))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """All branches' activations."""
        results = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, _Layer):
                    y = self.get_submodule(step.name)(y)
                else:
                    y = torch.cat([self.get_submodule(layer.name)(y) for layer in step], dim=1)
            results.append(y)
        if self.pool == "halve":
            results.append(max_pool2d(x, 3, stride=2))
        elif self.pool == "maximum":
            results.append(self.branch_pool(max_pool2d(x, 3, stride=1, padding=1)))
        else:
            average = avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            results.append(self.branch_pool(average))
        return torch.cat(results, dim=1)


def _block_a(inputs: int, pooled: int) -> _Block:
    one = _Layer("branch1x1", 64)
    five: _Branch = [_Layer("branch5x5_1", 48), _Layer("branch5x5_2", 64, (5, 5))]
    double: _Branch = [
        _Layer("branch3x3dbl_1", 64),
        _Layer("branch3x3dbl_2", 96, (3, 3)),
        _Layer("branch3x3dbl_3", 96, (3, 3)),
    ]
    return _Block(inputs, [[one], five, double], "average", pooled)


def _block_b(inputs: int) -> _Block:
    double: _Branch = [
        _Layer("branch3x3dbl_1", 64),
        _Layer("branch3x3dbl_2", 96, (3, 3)),
        _Layer("branch3x3dbl_3", 96, (3, 3), stride=2),
    ]
    return _Block(inputs, [[_Layer("branch3x3", 384, (3, 3), stride=2)], double], "halve", 0)


def _block_c(inputs: int, inner: int) -> _Block:
    seven: _Branch = [
        _Layer("branch7x7_1", inner),
        _Layer("branch7x7_2", inner, (1, 7)),
        _Layer("branch7x7_3", 192, (7, 1)),
    ]
    double: _Branch = [
        _Layer("branch7x7dbl_1", inner),
        _Layer("branch7x7dbl_2", inner, (7, 1)),
        _Layer("branch7x7dbl_3", inner, (1, 7)),
        _Layer("branch7x7dbl_4", inner, (7, 1)),
        _Layer("branch7x7dbl_5", 192, (1, 7)),
    ]
    return _Block(inputs, [[_Layer("branch1x1", 192)], seven, double], "average", 192)


def _block_d(inputs: int) -> _Block:
    three: _Branch = [_Layer("branch3x3_1", 192), _Layer("branch3x3_2", 320, (3, 3), stride=2)]
    seven: _Branch = [
        _Layer("branch7x7x3_1", 192),
        _Layer("branch7x7x3_2", 192, (1, 7)),
        _Layer("branch7x7x3_3", 192, (7, 1)),
        _Layer("branch7x7x3_4", 192, (3, 3), stride=2),
    ]
    return _Block(inputs, [three, seven], "halve", 0)


def _block_e(inputs: int, pool: _Pool) -> _Block:
    three: _Branch = [
        _Layer("branch3x3_1", 384),
        (_Layer("branch3x3_2a", 384, (1, 3)), _Layer("branch3x3_2b", 384, (3, 1))),
    ]
    double: _Branch = [
        _Layer("branch3x3dbl_1", 448),
        _Layer("branch3x3dbl_2", 384, (3, 3)),
        (_Layer("branch3x3dbl_3a", 384, (1, 3)), _Layer("branch3x3dbl_3b", 384, (3, 1))),
    ]
    return _Block(inputs, [[_Layer("branch1x1", 320)], three, double], pool, 192)


class Inception(nn.Module):
    """Pictures `[b 3 299 299]`, (level - 128) / 128, to pool, spatial and logit features."""

    def __init__(self) -> None:
        super().__init__()
        three = (3, 3)
        self.Conv2d_1a_3x3 = _Convolution(3, _Layer("", 32, three, stride=2))
        self.Conv2d_2a_3x3 = _Convolution(32, _Layer("", 32, three), padding=(0, 0))
        self.Conv2d_2b_3x3 = _Convolution(32, _Layer("", 64, three))
        self.Conv2d_3b_1x1 = _Convolution(64, _Layer("", 80))
        self.Conv2d_4a_3x3 = _Convolution(80, _Layer("", 192, three), padding=(0, 0))
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: Float[Tensor, "b 3 299 299"]) -> dict[str, Tensor]:
        """`pool [b 2048]`, `spatial [b 2023]`, `logits [b 1008]` without the bias.

        The spatial ones are TensorFlow's mixed_6/conv, which is torchvision's Mixed_6d.branch1x1.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = x[:, :7].flatten(1)  # the block's first branch comes first
        pool = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x)))).mean(dim=(2, 3))
        return {"pool": pool, "spatial": spatial, "logits": pool @ self.fc.weight.T}


def load_inception(weights: str | None) -> tuple[Inception, str]:
    """The network with the weights of a file, and the first eight digits of the file's SHA-256.

    ValueError says which file goes where, when there is none or it does not fit.
    """
    path = Path(weights).expanduser() if weights else cache_folder() / "weights" / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"there are no Inception weights at {path}: put {WEIGHTS} there (from the releases of "
            "pytorch-fid; torch-fidelity's weights-inception-2015-12-05-6726825d.pth is the same "
            "file), or set weights=FILE"
        )
    data = path.read_bytes()
    with torch.device("meta"):
        model = Inception()
    model.to_empty(device="cpu")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # a damaged pickle, a wrong one and a wrong shape raise all kinds
        raise ValueError(
            f"{path} does not hold the weights of the 2015 Inception "
            f"({' '.join(str(error).split())[:200]}): put {WEIGHTS} there"
        ) from error
    digest = hashlib.sha256(data).hexdigest()[:8]
    return model.eval().requires_grad_(False), digest
