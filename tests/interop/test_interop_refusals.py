"""Files and folders that are not what they should be: told in one line, and nothing is written."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from small_parts import parsed

from ldm.commands import encode, importing
from ldm.interop.files import read_weights, write_json
from ldm.tensor_files import write_tensors


def test_a_part_of_another_class_is_named(pipeline: Path, tmp_path: Path) -> None:
    config = json.loads((pipeline / "vae" / "config.json").read_text())
    write_json(pipeline / "vae" / "config.json", config | {"_class_name": "AutoencoderTiny"})
    arguments = parsed(importing, "import", str(pipeline), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="AutoencoderTiny is not known here; known are Auto"):
        arguments.func(arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt", "page.ckpt", "empty.ckpt", "one.pt"])
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "page.ckpt":
        file.write_text("<html>Sign in to download</html>")
    elif name == "empty.ckpt":
        file.touch()
    elif name == "one.pt":
        torch.save(torch.ones(1), file)
    else:
        write_tensors(file, {"a": torch.ones(999)}) if "safe" in name else torch.save(
            {"a": torch.ones(999)}, file
        )
        file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match=rf"^\S+{name} (is damaged|holds)") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


class Code:
    """A pickle that would run code when it is read."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(1)}, "extra": Code()}, file)
    with pytest.raises(ValueError, match="a pickle can run any code"):
        read_weights(file)
    file.write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(ValueError, match="a pickle can run any code"):
        read_weights(file)
    assert capsys.readouterr().out == ""


def test_a_picture_is_no_pickle(tmp_path: Path) -> None:
    for content in (b"p", b"\x89PNG\r\n", bytes(range(256))):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.pt (is damaged|holds)") as caught:
            read_weights(tmp_path / "a.pt")
        assert "\n" not in str(caught.value)


def test_an_imported_autoencoder_does_not_say_which_pictures_are_meant(
    pipeline: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    arguments = parsed(importing, "import", str(pipeline), out, "--image-size", "16")
    assert arguments.func(arguments) == 0
    arguments = parsed(encode, "encode", out, str(tmp_path / "latents"), "--no-text")
    with pytest.raises(ValueError, match=r"which shards it was trained on: .* --shards"):
        arguments.func(arguments)


def test_a_hub_name_says_what_to_do(tmp_path: Path) -> None:
    arguments = parsed(importing, "import", "stabilityai/some-model", str(tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="not fetched, so download it"):
        arguments.func(arguments)


def test_another_tools_autoencoder_is_imported_before_it_encodes(
    pipeline: Path, tmp_path: Path
) -> None:
    """Its folder does not say how large pictures are."""
    words = (str(pipeline / "vae"), str(tmp_path / "latents"), "--shards", "none.tar")
    arguments = parsed(encode, "encode", *words, "--no-text")
    with pytest.raises(ValueError, match=r"says no image_size: `ldm import .*vae OUT --image"):
        arguments.func(arguments)


def test_an_unknown_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    arguments = parsed(importing, "import", str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="KandinskyPipeline is not known here; known are Stable"):
        arguments.func(arguments)
