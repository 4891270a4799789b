import pytest
import torch
from known_features import Pixels

from ldm.metrics import CLIPScore


def test_refuses_captions_without_pictures():
    with pytest.raises(ValueError, match="0 pictures and 2 captions"):
        CLIPScore(Pixels()).update(torch.zeros(0, 3, 8, 8), ["a", "b"])


def test_refuses_pictures_of_mixed_size():
    metric = CLIPScore(Pixels())
    metric.update(torch.zeros(1, 3, 8, 8), ["a"])
    with pytest.raises(ValueError, match=r"\(16, 8\) after pictures of \(8, 8\)"):
        metric.update(torch.zeros(1, 3, 16, 8), ["a"])
    metric.reset()
    metric.update(torch.zeros(1, 3, 16, 8), ["a"])


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8)]
)
def test_refuses_what_is_no_picture(images):
    with pytest.raises(ValueError, match=r"needs float pictures \[b 3 H W\]"):
        CLIPScore(Pixels()).update(images, ["a"])
