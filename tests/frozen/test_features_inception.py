"""Our Inception against torch-fidelity's, with random weights of a fixed seed in both."""

import pytest
import torch
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ldm.frozen.features import InceptionFeatures
from ldm.frozen.inception import Inception
from ldm.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Recall,
    reference_statistics,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that keep activations of order one, with features that differ."""
    torch.manual_seed(0)
    model = Inception()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(model.state_dict(), path)
    return str(path)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, 3, 5, 5, generator=generator)
        smooth = nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)
        self.levels = (smooth * 255).byte()

    def __len__(self):
        return len(self.levels)

    def __getitem__(self, index):
        return self.levels[index]

    def images(self):
        return self.levels.float() / 127.5 - 1


def test_features_are_torch_fidelitys(weights):
    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("theirs", names, weights)
    blocks = {}
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, out: blocks.update(spatial=out))
    pictures = Pictures(3, seed=0)
    pool, logits = theirs(pictures.levels)
    images = pictures.images()
    expected = {"pool": pool, "logits": logits, "spatial": blocks["spatial"][:, :7].flatten(1)}
    for output, value in expected.items():
        ours = InceptionFeatures(output, weights)
        assert ours(images).shape == (3, ours.width)
        torch.testing.assert_close(ours(images), value, rtol=1e-3, atol=1e-4 * value.abs().max())
        assert value.std(0).mean() > 1e-3 * value.abs().max()  # pictures differ


def test_scores_end_to_end_are_torch_fidelitys(weights):
    made, real = Pictures(9, seed=1), Pictures(9, seed=2)
    theirs = torch_fidelity.calculate_metrics(
        input1=made,
        input2=real,
        cuda=False,
        isc=True,
        kid=True,
        prc=True,
        isc_splits=1,
        kid_subsets=1,
        kid_subset_size=9,
        prc_neighborhood=3,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=weights,
        batch_size=9,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    pool, logits = InceptionFeatures("pool", weights), InceptionFeatures("logits", weights)
    reference = reference_statistics(pool, [real.images()])
    metrics = {
        "inception_score_mean": InceptionScore(logits),
        "kernel_inception_distance_mean": KernelDistance(pool, reference),
        "recall": Recall(pool, reference, k=3),
    }
    images = made.images()
    for name, metric in metrics.items():
        metric.update(images, [""] * 9)
        assert float(metric.compute()) == pytest.approx(theirs[name], rel=1e-3), name


@pytest.mark.slow  # eigenvalues of a 2048 x 2048 product in NumPy
def test_fid_end_to_end_is_torch_fidelitys(weights):
    made, real = Pictures(40, seed=1), Pictures(40, seed=2)
    theirs = torch_fidelity.calculate_metrics(
        input1=made,
        input2=real,
        cuda=False,
        fid=True,
        feature_extractor_weights_path=weights,
        batch_size=20,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )["frechet_inception_distance"]
    pool = InceptionFeatures("pool", weights)
    metric = FrechetDistance(pool, reference_statistics(pool, real.images().split(8)))
    for images in made.images().split(16):
        metric.update(images, [""] * len(images))
    assert float(metric.compute()) == pytest.approx(theirs, rel=1e-3)


def test_missing_and_wrong_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"no Inception weights at .*pt_inception-2015-12-05"):
        InceptionFeatures()
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="does not hold the weights of the 2015 Inception"):
        InceptionFeatures("pool", str(tmp_path / "page.pth"))
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of the 2015 Inception"):
        InceptionFeatures("pool", str(tmp_path / "other.pth"))
