"""Tensor files on a disk that others use too."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ldm.tensor_files import write_tensors


def test_what_was_written_comes_back_with_its_notes(tmp_path: Path) -> None:
    path, turned = tmp_path / "a.safetensors", torch.rand(2, 3).T
    write_tensors(path, {"turned": turned}, {"run": "one"})
    assert torch.equal(load_file(path)["turned"], turned)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"run": "one"}


def test_others_can_read_it(tmp_path: Path) -> None:
    """A new file's rights, and not those of a temporary one."""
    write_tensors(tmp_path / "a.safetensors", {"weight": torch.ones(2)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path, weight = tmp_path / "a.safetensors", torch.ones(4)
    write_tensors(path, {"weight": weight})
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(path, {"one": weight, "other": weight[:]})
    assert torch.equal(load_file(path)["weight"], weight)
