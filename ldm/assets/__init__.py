"""Small things that are shipped with the package, and how a config names them: `asset:emoji`."""

from pathlib import Path

PREFIX = "asset:"


def resolve(path: str) -> str:
    """The file-system path of `asset:NAME`; any other path as it is."""
    if not path.startswith(PREFIX):
        return path
    return str(Path(__file__).parent / path.removeprefix(PREFIX))
