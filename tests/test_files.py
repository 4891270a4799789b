"""What is written is whole or not there; what cannot be read names its file."""

from pathlib import Path

import pytest

from ldm.files import drafted, read_json, read_text, write_text


def test_a_file_takes_the_place_of_the_old_one_and_a_failure_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "old"
    write_text(path, "grün")
    assert path.read_bytes() == "grün".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_when_it_is_whole_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def stopped() -> None:
        with drafted(path) as draft:
            draft.mkdir()
            (draft / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
    with drafted(path) as draft:
        draft.mkdir()
        (draft / "whole").touch()
        assert not path.exists()
    with pytest.raises(OSError, match="not empty"), drafted(path) as draft:
        draft.mkdir()
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "whole"]


def test_what_is_no_text_and_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xff"}')
    for read in (read_text, read_json):
        with pytest.raises(ValueError, match=r"config.json: no text in UTF-8 .* at byte 7"):
            read(path)
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"config.json: no JSON"):
        read_json(path)
    path.write_text('{"a": "ü"}', encoding="utf-8")
    assert read_json(path) == {"a": "ü"}
