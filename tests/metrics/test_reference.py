import pytest
import torch
from known_features import Pixels
from safetensors.torch import save_file

from ldm.metrics import Reference, load_reference


def reference(samples=None):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    return Reference("pixels-6", 40, x.mean(0), x.T.cov(), "0123", samples)


@pytest.mark.parametrize("samples", [None, torch.arange(12.0).view(2, 6)])
def test_comes_back_from_its_file(tmp_path, samples):
    made = reference(samples)
    made.save(tmp_path / "deeper" / "cats.safetensors")
    read = load_reference(tmp_path / "deeper" / "cats.safetensors")
    assert (read.features, read.count, read.data) == ("pixels-6", 40, "0123")
    assert torch.equal(read.mean, made.mean)
    assert torch.equal(read.covariance, made.covariance)
    assert (read.samples is None) if samples is None else torch.equal(read.samples, samples)


def test_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    reference().save(tmp_path / "stats" / "cats.safetensors")
    assert load_reference("cats").count == 40
    with pytest.raises(ValueError, match=r"ldm stats make .* --name dogs"):
        load_reference("dogs")


def test_refuses_files_of_others(tmp_path):
    save_file({"mean": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="does not hold reference statistics"):
        load_reference(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read"):
        load_reference(tmp_path / "b.safetensors")


def test_says_when_too_few_samples_were_kept():
    with pytest.raises(ValueError, match="3 single pictures or more, and the reference keeps 2"):
        reference(torch.zeros(2, 6)).samples_for(Pixels(6), minimum=3)
