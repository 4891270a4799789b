"""What is turned and shrunk stays one pair; alignment is 0 where it should be and pulls there."""

import pytest
import torch
from torch import Tensor

from ldm.models import Alignment, Equivariance
from ldm.models.autoencoder_regularisers import transformed
from ldm.types import Draws


def draws(step: int = 0) -> Draws:
    return Draws(0, step, range(2), 2, torch.device("cpu"))


def blocks(latent: Tensor) -> Tensor:
    """The picture of which a latent of colours is the thumbnail."""
    return latent.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turns_are_exact(turns: int) -> None:
    latent = torch.rand(2, 3, 4, 6)
    a, b = transformed(latent, blocks(latent), 1.0, turns)
    assert torch.equal(blocks(a), b)
    assert torch.equal(a, torch.rot90(latent, turns, (2, 3)))


def test_shrunken_pairs_keep_the_factor_and_the_scene() -> None:
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij"
    )
    image = torch.stack([rows, columns, rows * columns])[None] * 0.9
    latent = torch.nn.functional.avg_pool2d(image, 4)
    for scale in (0.3, 0.5, 0.8):
        a, b = transformed(latent, image, scale, 1)
        assert b.shape[2] == 4 * a.shape[2] < 32
        again = torch.nn.functional.avg_pool2d(b, 4)
        assert (again - a)[..., 1:-1, 1:-1].abs().max() < 0.1


def test_the_share_of_plain_steps_and_the_range_of_sizes() -> None:
    latent, image = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    plain, sizes = 0, set()
    for step in range(400):
        a, b = Equivariance(probability=0.3, smallest=0.5)(latent, image, draws(step))
        plain += a is latent and b is image
        sizes.add(a.shape[2])
    assert plain / 400 == pytest.approx(0.7, abs=0.07)
    assert sizes == {5, 6, 7, 8}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probability=0.0.*module.equivariance=null"):
        Equivariance(probability=0.0)


class Colours:
    """Pictures, eight times smaller, as the features of themselves."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(images, 8)]

    def to(self, device: torch.device) -> "Colours":
        return self


def test_latents_that_tell_the_features_cost_nothing() -> None:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    told = Colours()(image)[0]
    alignment = Alignment(
        Colours(), latent_channels=3, width=3, cosine_margin=0.0, distance_margin=0.0
    )
    with torch.no_grad():
        alignment.to_features.weight.copy_(torch.eye(3)[:, :, None, None])
        same, opposite = alignment(5 * told, image), alignment(-told, image)
    assert same.abs().max() < 1e-5
    assert float(opposite.min()) == pytest.approx(2, abs=1e-4)  # cosines of -1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 1}, r"alignment.width=1: the vision network gives 3 channels; set it to 3"),
        ({"latent_channels": 2}, r"alignment.latent_channels=2: the autoencoder gives 5 channels"),
    ],
)
def test_widths_that_are_not_the_networks_are_refused(settings: dict[str, int], said: str) -> None:
    alignment = Alignment(Colours(), **{"latent_channels": 5, "width": 3, **settings})
    with pytest.raises(ValueError, match=said):
        alignment(torch.randn(1, 5, 4, 4), torch.zeros(1, 3, 32, 32))


def test_alignment_learns_to_point() -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 3, 32, 32) * 2 - 1
    latent = torch.randn(4, 5, 4, 4, requires_grad=True)
    alignment = Alignment(Colours(), latent_channels=5, width=3)
    optimizer = torch.optim.Adam([latent, *alignment.parameters()], lr=0.05)
    before = float(alignment(latent, image).detach().mean())
    for _ in range(200):
        optimizer.zero_grad()
        alignment(latent, image).mean().backward()
        optimizer.step()
    assert float(alignment(latent, image).detach().mean()) < 0.1 * before
    assert list(alignment.state_dict()) == ["to_features.weight"]
