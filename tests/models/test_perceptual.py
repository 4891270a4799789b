"""Feature distances in closed form; LPIPS against torchmetrics'; losses against their formulas."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import vgg16

from ldm.models import L1, L2, LPIPS, Charbonnier, FeatureDistance, ReconstructionLoss
from ldm.models.autoencoder_losses import gaussian_kl
from ldm.types import Posterior


class Scaled:
    """Two feature maps: the pixels, and twice their squares."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [images, 2 * images.square()]

    def to(self, device: torch.device) -> "Scaled":
        return self


def pair(size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 3, size, size, generator=generator) * 2 - 1
    return images[0], images[1]


def test_feature_distance_is_twice_one_minus_the_cosine() -> None:
    a, b = pair()
    layers = [torch.cosine_similarity(x, y) for x, y in zip(Scaled()(a), Scaled()(b), strict=True)]
    expected = torch.stack([(2 - 2 * layer).mean(dim=(1, 2)) for layer in layers]).mean(dim=0)
    assert torch.allclose(FeatureDistance(Scaled())(a, b), expected, atol=1e-5)
    assert FeatureDistance(Scaled())(a, a).abs().max() == 0
    a.requires_grad_()
    FeatureDistance(Scaled())(a, b).sum().backward()
    assert a.grad.abs().max() > 0


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixed random weights: the real file is 528 MB and not ours to ship."""
    torch.manual_seed(0)
    network = vgg16()
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(network.state_dict(), path)
    return path


def test_lpips_equals_torchmetrics(vgg_file: Path) -> None:
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    state = torch.load(vgg_file)
    names = [name for name in theirs.net.state_dict() if name.startswith("slice")]
    theirs.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in names})
    a, b = pair()
    ours = LPIPS(str(vgg_file))
    assert torch.allclose(ours(a, b), theirs(a, b).flatten(), atol=1e-4)
    assert float(ours(a, b).max()) > 1e-3
    a.requires_grad_()
    ours(a, b).sum().backward()
    assert a.grad.abs().max() > 0


def test_an_absent_file_says_where_to_put_it() -> None:
    distance = LPIPS("nowhere/vgg16.pth")  # composing a configuration needs no file
    with pytest.raises(
        FileNotFoundError, match=r"nowhere/vgg16.pth: .* module.loss.perceptual.weights"
    ):
        distance.to(torch.device("cpu"))


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "odd.pth")
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    for name in ("odd.pth", "page.pth"):
        with pytest.raises(ValueError, match=rf"{name}: these are not torchvision's VGG16 weights"):
            LPIPS(str(tmp_path / name)).to(torch.device("cpu"))


def test_penalties() -> None:
    d = torch.tensor([-2.0, 0.0, 0.5])
    assert torch.equal(L1()(d), torch.tensor([2.0, 0.0, 0.5]))
    assert torch.equal(L2()(d), torch.tensor([4.0, 0.0, 0.25]))
    assert torch.allclose(Charbonnier(eps=1e-6)(d), L1()(d), atol=1e-5)
    slope = torch.func.grad(Charbonnier(eps=0.1))(torch.tensor(0.0))
    assert float(slope) == 0


def test_the_sum_is_what_its_parts_say() -> None:
    made, image = pair(8)
    posterior = Posterior(torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4))
    loss = ReconstructionLoss(
        L2(), scales=2, edges=0.5, perceptual=FeatureDistance(Scaled()), perceptual_weight=3.0
    )
    terms = loss(made, image, posterior)
    d = made - image
    small = torch.nn.functional.avg_pool2d(d, 2)
    pixel = d.square().mean(dim=(1, 2, 3)) + small.square().mean(dim=(1, 2, 3))
    rows = (d[:, :, 1:] - d[:, :, :-1]).square().mean(dim=(1, 2, 3))
    columns = (d[..., 1:] - d[..., :-1]).square().mean(dim=(1, 2, 3))
    assert torch.allclose(terms.pixel, pixel, atol=1e-6)
    assert torch.allclose(terms.edges, rows + columns, atol=1e-6)
    assert torch.allclose(terms.total, pixel + 0.5 * (rows + columns) + 3 * terms.perceptual)
    assert terms.kl.abs().max() == 0


def test_kl_equals_torch_and_free_nats_are_free() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 4, 4, generator=generator)
    std = torch.rand(2, 3, 4, 4, generator=generator) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(gaussian_kl(Posterior(mean, std)), expected, atol=1e-5)
    image = torch.zeros(2, 3, 8, 8)
    published = ReconstructionLoss(L1(), kl=2.0)(image, image, Posterior(mean, std))
    summed = expected.sum(dim=(1, 2, 3)) / image[0].numel()
    assert torch.allclose(published.total, 2 * summed, rtol=1e-4)
    free = ReconstructionLoss(L1(), free_nats=100.0)(image, image, Posterior(mean, std))
    assert torch.allclose(free.kl, torch.full((2,), 100.0 * 48 / 192))
    fixed = ReconstructionLoss(L1())(image, image, Posterior(mean, torch.zeros_like(std)))
    assert fixed.kl.abs().max() == 0
