"""Weight files and folders, read without running any code that they may hold."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm.files import read_json
from ldm.tensor_files import write_tensors

WEIGHTS = "diffusion_pytorch_model"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .bin, .pt or .pth read as weights only;
    averaged ones (`ema`) where a file holds both.

    FileNotFoundError where there is none; ValueError for a pickle that wants to run code, and for a
    file that is damaged or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        plain = path.suffix == ".safetensors"
        content: dict[str, Any] = load_file(path) if plain else _unpickled(path)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or no file of weights ({' '.join(str(error).split())[:120]}); "
            "download it again"
        ) from None
    for name in ("state_dict", "ema", "model"):
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    return {
        name.removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        # DiT's and SiT's training keeps the command's options beside the tensors, as plain values.
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and was not opened, since a pickle can run any code "
            "(" + str(error).splitlines()[0][:120] + "); convert it to .safetensors where you "
            "trust it"
        ) from None
    except Exception as error:  # the unpickler fails in any way on what is no pickle
        raise ValueError(
            f"{path} is damaged or no file of weights ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}); download it again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, and no tensors by name")
    return content


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's configuration. FileNotFoundError says what belongs there."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; {folder} should be a folder that diffusers or transformers "
            "saved: names on the hub are not fetched, so download it and name the folder"
        )
    config: dict[str, Any] = read_json(path)
    return config


def read_folder_weights(folder: Path, stem: str = WEIGHTS) -> dict[str, Tensor]:
    """The tensors beside a config.json: one file, or shards with an index."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        state: dict[str, Tensor] = {}
        for shard in sorted(set(read_json(index)["weight_map"].values())):
            state |= read_weights(folder / shard)
        return state
    for suffix in (".safetensors", ".bin"):
        if (folder / f"{stem}{suffix}").is_file():
            return read_weights(folder / f"{stem}{suffix}")
    raise FileNotFoundError(f"{folder}: neither {stem}.safetensors nor {stem}.bin is there")


def write_folder(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], stem: str = WEIGHTS
) -> None:
    """config.json and one .safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_tensors(folder / f"{stem}.safetensors", state)


def write_json(path: Path, content: Any) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def refuse_unless(config: Mapping[str, Any], required: Mapping[str, Any], what: str) -> None:
    """ValueError names every setting whose value is another than the only one we have.

    A setting that is absent has its default, which is the required value.
    """
    odd = [
        f"{name}={config[name]!r} (only {value!r})"
        for name, value in required.items()
        if name in config and config[name] != value
    ]
    if odd:
        raise ValueError(f"this {what} cannot be expressed here: {', '.join(odd)}")
