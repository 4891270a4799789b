"""Tensors that several ranks hold in parts, on the disk: `torch.distributed.checkpoint`.

Only tensors are stored, under flat names; `.metadata` is a pickle, and trusted because the
checkpoint's manifest vouches for the run's own files.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ldm import ranks

_BETWEEN = "|"  # occurs in no parameter's name


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """`{"a": {"b": t}}` -> `{"a|b": t}`."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}{_BETWEEN}")
        else:
            found[prefix + name] = value
    return found


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The reverse of `flat`."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *path, last = name.split(_BETWEEN)
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return tree


def write_shards(folder: Path, tree: Mapping[str, Any], group: Any = None) -> None:
    """Every rank calls it, and writes what it holds; `group` is what the ranks talk over, where it
    is not the default one."""
    writer = FileSystemWriter(folder, overwrite=False)
    alone = not ranks.together()
    with _quiet():
        save(flat(tree), storage_writer=writer, process_group=group, no_dist=alone)


def shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Flat name -> shape and type of each whole tensor."""
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_shards(folder: Path, into: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """The tensors as a tree: in place into those (by flat name) that are given, which may be
    split over ranks that all call this; whole on the CPU by this process alone otherwise."""
    alone = into is None or not ranks.together()
    if into is None:
        into = {name: torch.empty(size, dtype=t) for name, (size, t) in shapes(folder).items()}
    with _quiet():
        load(dict(into), storage_reader=FileSystemReader(folder), no_dist=alone)
    return nested(into)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that one process alone is at work: that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
