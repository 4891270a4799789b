"""Tables that need pyarrow, which is installed only where it is wanted."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415  # optional and large
    except ImportError:
        raise ValueError("Parquet and Arrow files need pyarrow; pip install pyarrow") from None
    return pyarrow


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file. Raises ValueError where it is none."""
    _pyarrow()
    from pyarrow import ArrowException, parquet  # noqa: PLC0415  # optional and large

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable Parquet file ({error})") from None
    return rows


@lru_cache(maxsize=8)
def _table(path: str) -> Any:
    """A Hugging Face data set's Arrow file, mapped into memory."""
    pyarrow = _pyarrow()
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable Arrow file ({error})") from None


def arrow_columns(path: str) -> Mapping[str, str]:
    """Names of the columns, and their types in Arrow's words."""
    return {field.name: str(field.type) for field in _table(path).schema}


def arrow_column(path: str, name: str) -> list[Any]:
    """One column's values."""
    values: list[Any] = _table(path).column(name).to_pylist()
    return values


def picture_column(path: str) -> str:
    """The column that holds pictures as Hugging Face stores them: a struct of bytes and path."""
    for name, kind in arrow_columns(path).items():
        if kind.startswith("struct<") and "bytes: binary" in kind:
            return name
    raise ValueError(f"{path} has no column of pictures; its columns are {arrow_columns(path)}")


def picture_in_row(path: str, row: int) -> bytes:
    """A picture's bytes. Raises ValueError where the row names a file instead of holding it."""
    raw = _table(path).column(picture_column(path))[row].as_py()
    if raw is None or raw["bytes"] is None:
        raise ValueError(f"row {row} of {path} holds no picture's bytes")
    contents: bytes = raw["bytes"]
    return contents
