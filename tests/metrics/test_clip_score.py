import numpy as np
import pytest
import torch
from known_features import Pixels, as_images

from ldm.metrics import CLIPScore, Retrieval

WORDS = [f"a picture of thing {number}" for number in range(12)]


def pictures_of(captions, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = Pixels(16).texts(captions)
    return as_images(texts + noise * torch.randn(texts.shape, generator=generator))


def filled(metric, images, captions, batch=5):
    for start in range(0, len(captions), batch):
        metric.update(images[start : start + batch], captions[start : start + batch])
    return float(metric.compute())


def test_clip_score_equals_numpy():
    images = pictures_of(WORDS, noise=2.0)
    a = Pixels(16)(images).double().numpy()
    b = Pixels(16).texts(WORDS).double().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    expected = 100 * np.maximum(cosine, 0).mean()
    assert filled(CLIPScore(Pixels(16)), images, WORDS) == pytest.approx(expected, rel=1e-6)


def test_opposite_pictures_score_zero_not_less():
    assert filled(CLIPScore(Pixels(16)), -pictures_of(WORDS, noise=0.0), WORDS) == 0.0


def test_own_captions_score_above_shuffled_ones():
    images = pictures_of(WORDS, noise=1.0)
    right = filled(CLIPScore(Pixels(16)), images, WORDS)
    assert right > filled(CLIPScore(Pixels(16)), images, WORDS[1:] + WORDS[:1]) + 10


@pytest.mark.parametrize("k", [1, 3])
def test_retrieval_equals_numpy(k):
    captions = WORDS + WORDS[:7]  # some captions twice: they count once
    images = pictures_of(captions, noise=2.5)
    a = Pixels(16)(images).double().numpy()
    b = Pixels(16).texts(WORDS).double().numpy()
    fit = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    best = np.argsort(-fit, axis=1)[:, :k]
    expected = np.mean([WORDS.index(c) in row for c, row in zip(captions, best, strict=True)])
    assert 0.2 < expected < 1.0  # else the numbers above test nothing
    assert filled(Retrieval(Pixels(16), k), images, captions) == pytest.approx(expected, abs=1e-12)


def test_retrieval_refuses_k_below_one():
    with pytest.raises(ValueError, match="set k to 1 or more"):
        Retrieval(Pixels(16), 0)
