"""The gallery's pages over HTTP, by the standard library; answers only pages of its own.

Other web sites that the same browser shows can send requests to this machine as well. They are
told from the gallery's page by the `Host` that a browser sends (a name of theirs, even where it
leads here), and because they cannot send JSON without being asked first.
"""

import base64
import io
import ipaddress
import json
import socket
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from PIL import Image as Pictures

from ldm.commands.gallery_wish import Artist, Glimpse, Wish
from ldm.commands.page import page

LARGEST = 65_536  # bytes of a request
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)


class Refused(Exception):
    """An answer other than the asked one."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Pages(BaseHTTPRequestHandler):
    """`/`, `/offer`, `/favourites/NAME`; POST `/draw` (JSON lines while it forms), `/keep`,
    `/forget`."""

    server_version = "ldm"
    sys_version = ""

    def __init__(self, artist: Artist, *arguments: Any) -> None:
        self.artist, self.sent = artist, b""
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page, what it can choose from, and kept pictures."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """Drawing, keeping, forgetting."""
        # Read whatever comes of it: a connection that is closed on unread bytes loses its answer.
        length = self.headers.get("Content-Length", "")
        self.sent = self.rfile.read(min(int(length), 2 * LARGEST) if length.isdigit() else 0)
        self._answered(self._post)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: the terminal belongs to the person."""

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            whole = page("gallery", "ldm gallery").encode()
            self._send("text/html; charset=utf-8", whole)
        elif path == "/offer":
            self._send_json({**self.artist.offer(), "favourites": self.artist.favourites()})
        elif file := self.artist.favourite(path.removeprefix("/favourites/")):
            self._send("image/png", file.read_bytes())
        else:
            raise Refused(HTTPStatus.NOT_FOUND, f"{path}: there is nothing")

    def _post(self) -> None:
        asked = self._body()
        if self.path == "/draw":
            self._draw(Wish.of(asked))
        elif self.path == "/keep":
            self.artist.keep(Wish.of(asked))
            self._send_json(self.artist.favourites())
        elif self.path == "/forget":
            file = self.artist.favourite(str(asked.get("name")) if isinstance(asked, dict) else "")
            if file is None:
                raise Refused(HTTPStatus.NOT_FOUND, "no such favourite")
            file.unlink(missing_ok=True)
            self._send_json(self.artist.favourites())
        else:
            raise Refused(HTTPStatus.NOT_FOUND, f"{self.path}: there is nothing")

    def _draw(self, wish: Wish) -> None:
        """One line a pass of the network, the last with `done`. A page that goes away ends it."""
        began = False

        def line(values: dict[str, Any]) -> None:
            nonlocal began
            if not began:
                self._head("application/x-ndjson")
                began = True
            self.wfile.write(json.dumps(values).encode() + b"\n")
            self.wfile.flush()

        def show(glimpse: Glimpse) -> None:
            picture = as_address(glimpse.picture)
            line({"passes": glimpse.passes, "progress": glimpse.progress, "image": picture})

        start = time.perf_counter()
        try:
            picture = self.artist.draw(wish, show)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            if not began:
                raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
            line({"error": str(error)})
            return
        line({"done": True, "seconds": time.perf_counter() - start, "image": as_address(picture)})

    def _body(self) -> Any:
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        if len(self.sent) > LARGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {LARGEST} bytes")
        return json.loads(self.sent)

    def _answered(self, answer: Callable[[], None]) -> None:
        try:
            self._refuse_other_sites()
            answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page has gone on to something else
        except Refused as error:
            self._send_json({"error": str(error)}, error.status)
        except (ValueError, OSError) as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _refuse_other_sites(self) -> None:
        here = str(self.server.server_address[0])  # type: ignore[index]  # TCP
        if not ipaddress.ip_address(here).is_loopback:
            return  # --anyone: other machines know it by names of their own
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if host not in ("localhost", "127.0.0.1", "::1", here):
            raise Refused(HTTPStatus.FORBIDDEN, f"Host {host!r} is not this page's")

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send("application/json", json.dumps(value).encode(), status)

    def _send(self, kind: str, content: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(kind, status, len(content))
        self.wfile.write(content)

    def _head(
        self, kind: str, status: HTTPStatus = HTTPStatus.OK, length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in (
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()


class Server(ThreadingHTTPServer):
    """A thread a request, so that the page answers while a picture forms."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], pages: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, pages)


def serve(artist: Artist, host: str, port: int) -> Server:
    """Bound and listening; OSError where the port is taken."""
    return Server((host, port), partial(Pages, artist))


def as_address(picture: Pictures.Image) -> str:
    """A PNG as a `data:` address."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
