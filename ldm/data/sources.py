"""Where shards come from: names, braces, globs, and what is shipped with the package."""

import glob
from collections.abc import Sequence
from pathlib import Path

import braceexpand

ASSETS = Path(__file__).parents[1] / "assets"
_MAGIC = "*?["


def expand(shards: str | Sequence[str]) -> list[str]:
    """The addresses of all shards, in order: braces and globs expanded, `asset:` resolved.

    Raises FileNotFoundError when a pattern matches nothing or a named shard is missing.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    found: list[str] = []
    for pattern in patterns:
        for name in braceexpand.braceexpand(pattern):
            found += _matches(name)
    if not found:
        raise FileNotFoundError("data.shards is empty; name at least one tar file")
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(f"data.shards names {twice} twice; name every shard once")
    return found


def _matches(name: str) -> list[str]:
    if name.startswith("asset:"):
        name = str(ASSETS / name.removeprefix("asset:"))
    if any(sign in name for sign in _MAGIC):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            raise FileNotFoundError(f"data.shards={name} matches no file; check the path")
        return found
    if not Path(name).is_file():
        raise FileNotFoundError(f"data.shards names {name}, which does not exist; check the path")
    return [name]
