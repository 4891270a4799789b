"""Captions out of bytes: strict UTF-8, and nothing that a tokenizer chokes on."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPLACED = "\N{REPLACEMENT CHARACTER}"  # stands for what no tokenizer takes
_UNWANTED = re.compile("[\0\ud800-\udfff]")  # lone surrogates come from JSON escapes


def caption_of(raw: bytes | bytearray) -> str:
    """The caption without its byte-order mark and outer blanks; NUL becomes U+FFFD.

    Raises ValueError when the bytes are not UTF-8, or nothing but NUL.
    """
    if raw and not raw.strip(b"\0"):
        raise ValueError(f"the caption is {len(raw)} zero bytes")
    try:
        return cleaned(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the caption is not UTF-8 (byte {error.start}: {bytes(raw[:24])!r})"
        ) from None


def cleaned(caption: str) -> str:
    """No byte-order mark, no outer blanks; U+FFFD for NUL and for lone surrogates."""
    if caption.isascii() and "\0" not in caption:  # nothing to replace; most are
        return caption.strip()
    return _UNWANTED.sub(REPLACED, caption.removeprefix("﻿")).strip()


def lines_of(path: Path) -> list[str]:
    """The lines of a file that hold something, without outer blanks. ValueError names the line that
    is not UTF-8."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(caption_of(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; save it as UTF-8") from None
    return [line for line in found if line]


def record_of(raw: bytes) -> dict[str, Any]:
    """The object in a .json member. Raises ValueError when it is none."""
    try:
        record = json.loads(raw)
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"unreadable JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"the JSON holds a {type(record).__name__}, not an object")
    return record


def field_of(record: Mapping[str, Any], field: str) -> str:
    """A caption in a JSON record; empty where it is missing or null.

    Raises ValueError when the field holds something else than text.
    """
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"JSON field {field!r} holds {value!r}, which is no text")
    return cleaned(value)
