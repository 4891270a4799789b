"""Which keys there are outside of constructor calls, with types, ranges and what they mean.

conf/train.yaml, the stage's file and every choice of the groups that these name are the schema:
a key that stands in none of them does not exist. A default gives its key the type; what a default
cannot say (null, ???) stands in `TYPES`, what a type cannot say in `NUMBERS`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf

from ldm.commands.arguments import COUNT, NOT_NEGATIVE, Range
from ldm.commands.errors import CONF

PRECISION = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"]
TYPES: dict[str, Any] = {
    "name": str,
    "precision": PRECISION,
    "stage_name": Literal["autoencoder", "diffusion", "clip"],
    "first_stage": str,
    "data.folder": str,
    "checkpoint.keep_every": int | None,
    "overfit": int | None,
    "checkpoint.best": str | None,
    "spikes.factor": float | None,
    "spikes.action": Literal["warn", "stop", "go_back"],
    "latent.channels": int | None,
    "latent.size": int | None,
    "text.width": int | None,
    "text.pooled_width": int | None,
    "backbone.init": str | None,
    "autoencoder.init": str | None,
    "evaluation.grid_prompts": list[str] | None,
    "evaluation.guidance": float,
    "evaluation.metrics": list[str],
    "evaluation.reference": list[str],
}
NUMBERS: dict[str, Range] = {
    **dict.fromkeys(
        [
            "image_size",
            "global_batch",
            "accumulate",
            "log_every",
            "overfit",
            "checkpoint.every",
            "checkpoint.keep",
            "checkpoint.keep_every",
            "spikes.factor",
            "spikes.patience",
            "watchdog.factor",
            "evaluation.every",
            "evaluation.shown",
            "evaluation.batch_size",
            "latent.channels",
            "latent.size",
        ],
        COUNT,
    ),
    **dict.fromkeys(
        (
            "workers",
            "blocks.recompute_every",
            "evaluation.guidance",
            "text.width",
            "text.pooled_width",
        ),
        NOT_NEGATIVE,
    ),
    "evaluation.prompts": Range(least=2),  # a covariance needs two pictures
    "seed": Range(least=0, most=2**32 - 1),  # NumPy takes no more
    "watchdog.least": Range(above=0),
}


@dataclass
class Entry:
    """One key: the defaults that files give it, the words beside it, and where it stands."""

    defaults: list[Any] = field(default_factory=list)
    comment: str = ""
    files: list[str] = field(default_factory=list)

    @property
    def is_node(self) -> bool:
        """A mapping of further keys, or a constructor call."""
        return any(isinstance(default, Mapping) for default in self.defaults)

    @property
    def is_call(self) -> bool:
        """A constructor call, whichever choice is taken."""
        return any(isinstance(one, Mapping) and "_target_" in one for one in self.defaults)


def required(stage: str) -> list[str]:
    """What no training of the stage can do without: its parts, and the keys of its own files."""
    own = {"train.yaml", f"stage/{stage}.yaml"}
    return [
        name
        for name, entry in entries(stage).items()
        if (name.isidentifier() or own.intersection(entry.files))
        and name not in ("logger", "overfit", "lora")
    ]


def hint_of(key: str, entry: Entry) -> Any:
    """The type that the key's values must have; Any where nothing tells it."""
    if key in TYPES:
        return TYPES[key]
    plain = [d for d in entry.defaults if d is not None and not isinstance(d, Mapping)]
    if not plain or any(isinstance(d, str) and ("${" in d or d == "???") for d in plain):
        return Any
    kinds = {type(default) for default in plain}
    kind: Any = kinds.pop() if len(kinds) == 1 else Any
    return kind | None if kind is not Any and None in entry.defaults else kind


@cache
def entries(stage: str) -> dict[str, Entry]:
    """Dotted key -> entry, for everything outside of constructor calls (their own keys with)."""
    found: dict[str, Entry] = {}
    files = [(CONF / "train.yaml", ""), (CONF / "stage" / f"{stage}.yaml", "")]
    for group in groups(stage):
        found.setdefault(package_of_group(group), Entry([{}], f"the group {group}", []))
        files += [(path, package_of(path, group)) for path in sorted((CONF / group).glob("*.yaml"))]
    for path, package in files:
        for key, value in _walk(_tree(path), package):
            entry = found.setdefault(key, Entry())
            entry.defaults.append(value)
            entry.files.append(str(path.relative_to(CONF)))
            entry.comment = entry.comment or comments(path).get(key.removeprefix(f"{package}."), "")
    for key in ("defaults", "hydra", "experiment", "debug"):
        found.pop(key, None)
    return found


def groups(stage: str) -> list[str]:
    """The groups that a training of this stage composes, without those of differences only."""
    names = []
    for path in (CONF / "train.yaml", CONF / "stage" / f"{stage}.yaml"):
        for item in _tree(path, keep_defaults=True).get("defaults", []):
            if isinstance(item, Mapping):
                names += [str(name).removeprefix("optional ").strip("/") for name in item]
    return [name for name in dict.fromkeys(names) if name not in ("stage", "experiment", "debug")]


def package_of(path: Path, group: str) -> str:
    """Where a choice's content lands: its `# @package` line, else the group's name."""
    match = re.match(r"# @package (\S+)", path.read_text(encoding="utf-8"))
    if match is None:
        return group.replace("/", ".")
    return "" if match[1] == "_global_" else match[1]


def package_of_group(group: str) -> str:
    """Of the group's first choice."""
    paths = sorted((CONF / group).glob("*.yaml"))
    return package_of(paths[0], group) if paths else group


@cache
def comments(path: Path) -> dict[str, str]:
    """Dotted key -> the comment at the end of its line; for block mappings, as ours are."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)([\w.]+):(?:[^#]|(?<! )#)*(?: # ?(.*))?$", line)
        if match is None:
            continue
        depth = len(match[1])
        stack = [(d, name) for d, name in stack if d < depth] + [(depth, match[2])]
        if match[3]:
            found[".".join(name for _, name in stack)] = match[3].strip()
    return found


@cache
def head_comment(path: Path) -> str:
    """The comment above a file's first key."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def _tree(path: Path, *, keep_defaults: bool = False) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds no keys; write KEY: VALUE")
    if not keep_defaults:
        tree.pop("defaults", None)
        tree.pop("hydra", None)
    return tree


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    if prefix and "_target_" in tree:
        yield prefix, tree
        return
    if prefix:
        yield prefix, tree
    for name, value in tree.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from _walk(value, key)
        else:
            yield key, value


def dumped(value: Any) -> str:
    """One line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
