"""What the disk and the machine refuse: one line, exit code 2."""

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.commands import main
from ldm.commands.composing import composed
from ldm.commands.drawing import device_of
from ldm.commands.errors import reported
from ldm.tensor_files import write_tensors


def test_what_the_disk_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "out/000.png")

    for refused, words in (
        (lambda: (tmp_path / "file" / "x").mkdir(), "file/x: Not a directory"),
        (lambda: tmp_path.read_text(), "Is a directory"),
        (lambda: (tmp_path / "file").mkdir(), "File exists"),
        (full, "out/000.png: No space left on device"),
        (lambda: (tmp_path / "no" / "x").read_text(), "no/x: No such file or directory"),
    ):
        assert reported(refused) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert words in said


def test_a_value_that_needs_quotes_within_quotes_is_told_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        composed(["name=x", "data=shards", "data.folder=~/my-shards"])
        return 0

    assert reported(main) == 2
    assert "write 'data.folder=\"~/my-shards\"'" in capsys.readouterr().err
    typed = 'data.folder="~/my-shards"'
    assert composed(["name=x", "data=shards", typed]).data.folder == "~/my-shards"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: write_tensors(path, {"weight": torch.ones(9999)}), "File too large; name"),
        (lambda path: torch.save(torch.ones(9999), path), "a file could not be written to its"),
    ],
)
def test_a_disk_that_is_full_for_tensors_is_one_line(
    write: Callable[[Path], None],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code = reported(lambda: write(tmp_path / "a"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--device {name}: not there .*; leave it out"):
        device_of(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sweep ../x --over seed=1,2 --metric val/loss", "name='../x': a run's name is"),
        ("quickstart --prompts 0", "--prompts 0: must be 1 or more"),
        ("encode a-run b --split a/b", "--split a/b: "),
        ("encode a-run b --workers -1", "--workers -1: must be 0 or more"),
        ("import a b --image-size 0", "--image-size 0: must be 1 or more"),
        ("stages a-run --scale 0", "--scale 0: must be 1 or more"),
        ("evaluate a-run --samples 0", "--samples 0: must be 1 or more"),
        ("evaluate a-run --per-prompt -2", "--per-prompt -2: must be 1 or more"),
        ("stats make a --size 0 --name b", "--size 0: must be 1 or more"),
        ("evidence a-run --steps 4,0", "--steps 4,0: each must be 1 or more"),
    ],
)
def test_an_option_that_cannot_be_is_named(
    words: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ldm", *words.split()])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []
