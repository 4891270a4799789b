"""Tokens stand where their patches stand; gradients reach pictures; what is absent is named."""

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from ldm.frozen.feature_maps import Dinov2Maps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dinov2")
    settings = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**settings, image_size=56, patch_size=14)).save_pretrained(path)
    return path


def test_a_place_of_the_map_is_the_token_of_its_patch(folder: Path) -> None:
    maps = Dinov2Maps(str(folder), grid=4)
    images = torch.rand(2, 3, 56, 56) * 2 - 1
    (found,) = maps(images)
    assert found.shape == (2, 12, 4, 4)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    model = Dinov2Model.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        tokens = model(((images + 1) / 2 - mean) / std).last_hidden_state
    assert torch.allclose(found[:, :, 2, 1], tokens[:, 1 + 2 * 4 + 1], atol=1e-5)


def test_gradients_reach_pictures_of_any_size_and_no_weight(folder: Path) -> None:
    maps = Dinov2Maps(str(folder), grid=2)
    images = torch.rand(1, 3, 64, 48, requires_grad=True)
    maps(images)[0].square().sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is None for p in maps.model.parameters())


def test_an_absent_network_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no config.json"):
        Dinov2Maps("nowhere")
