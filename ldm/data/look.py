"""What a picture's header says, without decoding the picture."""

import io
from typing import NamedTuple

from PIL import Image as Picture
from PIL import UnidentifiedImageError

from ldm.data.decode import no_picture, orientation


class LeftOut(Exception):
    """This sample can never be read."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Look(NamedTuple):
    """What a picture's header says; width and height as a viewer shows it."""

    width: int
    height: int
    mode: str
    jpeg: bool  # an upright RGB JPEG


def look_into(file: io.BytesIO | io.BufferedReader) -> Look:
    """What the header says, and no more is read. Raises whatever a codec does."""
    with Picture.open(file) as picture:
        turned = orientation(picture)
        size = picture.size if turned < 5 else picture.size[::-1]
        jpeg = picture.format == "JPEG" and picture.mode == "RGB" and turned == 1
        return Look(*size, picture.mode, jpeg)


def look_at(raw: bytes) -> Look:
    """Reads the header alone."""
    try:
        return look_into(io.BytesIO(raw))
    except UnidentifiedImageError:
        raise LeftOut("unreadable picture", no_picture(raw)) from None
    except Exception as error:  # what a broken file makes a codec raise is not documented
        raise LeftOut("unreadable picture", f"{error} (starts with {raw[:12]!r})") from None
