"""What the disk and the machine refuse: one line, exit code 2."""

import errno
from pathlib import Path

import pytest

from ldm.commands.drawing import device_of
from ldm.commands.errors import reported


def test_what_the_disk_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "out/000.png")

    for main, words in (
        (lambda: (tmp_path / "file" / "x").mkdir(), "file/x: Not a directory"),
        (lambda: tmp_path.read_text(), "Is a directory"),
        (lambda: (tmp_path / "file").mkdir(), "File exists"),
        (full, "out/000.png: No space left on device"),
        (lambda: (tmp_path / "no" / "x").read_text(), "no/x: No such file or directory"),
    ):
        assert reported(main) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert words in said


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--device {name}: not there .*; leave it out"):
        device_of(name)
