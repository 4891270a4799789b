"""The gallery over HTTP: what its page may ask, and who may ask at all. A fake draws."""

import json
import re
import socket
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
from PIL import Image

from ldm.commands.gallery import refuse_strangers
from ldm.commands.gallery_pages import serve
from ldm.commands.gallery_wish import Glimpse

WISH = {"prompt": "red apple", "sampler": "heun", "steps": 3, "guidance": 2.0, "seed": 5}
WISH["checkpoint"] = "run/step-00000001"


class Painter:
    """Draws grey; one favourite."""

    def __init__(self, folder):
        self.kept = folder / "abc.png"
        self.wishes = []

    def offer(self):
        return {"checkpoints": ["run/step-00000001"]}

    def draw(self, wish, show):
        self.wishes.append(wish)
        picture = Image.new("RGB", (4, 4), "grey")
        if wish.prompt == "nothing":
            raise ValueError("cannot be drawn")
        show(Glimpse(1, 0.25, picture))
        if wish.prompt == "half":
            raise RuntimeError("out of memory")
        return picture

    def keep(self, wish):
        Image.new("RGB", (4, 4)).save(self.kept)
        return self.kept.name

    def favourites(self):
        return [{"name": "abc.png", "wish": WISH}] if self.kept.exists() else []

    def favourite(self, name):
        return self.kept if name == "abc.png" and self.kept.exists() else None


@contextmanager
def served(artist):
    server = serve(artist, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    return Painter(tmp_path_factory.mktemp("favourites"))


@pytest.fixture(scope="module")
def port(painter):
    with served(painter) as port:
        yield port


def answer(port, path, sent=None, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    if sent is None:
        connection.request("GET", path, headers=headers)
    else:
        headers = {"Content-Type": "application/json", **headers}
        connection.request("POST", path, json.dumps(sent), headers)
    got = connection.getresponse()
    body = got.read()
    connection.close()
    return got, body


def test_the_page_comes_without_anything_from_elsewhere(port):
    got, page = answer(port, "/")
    assert got.status == 200
    assert "default-src 'none'" in got.headers["Content-Security-Policy"]
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", page)
    assert b"https://" not in page


def test_a_drawing_is_told_line_by_line(port, painter):
    got, body = answer(port, "/draw", {**WISH, "steps": 3.0})
    assert got.headers["Content-Type"] == "application/x-ndjson"
    first, last = [json.loads(line) for line in body.splitlines()]
    assert (first["passes"], first["progress"]) == (1, 0.25)
    assert last["done"]
    assert last["image"].startswith("data:image/png;base64,")
    assert painter.wishes[-1].steps == 3
    got, body = answer(port, "/draw", {**WISH, "prompt": "nothing"})
    assert (got.status, json.loads(body)) == (400, {"error": "cannot be drawn"})
    _, body = answer(port, "/draw", {**WISH, "prompt": "half"})
    assert json.loads(body.splitlines()[-1]) == {"error": "out of memory"}


def test_favourites_are_kept_shown_and_forgotten(port, painter):
    assert json.loads(answer(port, "/keep", WISH)[1]) == painter.favourites()
    got, body = answer(port, "/favourites/abc.png")
    assert (got.headers["Content-Type"], body) == ("image/png", painter.kept.read_bytes())
    assert json.loads(answer(port, "/forget", {"name": "abc.png"})[1]) == []
    assert not painter.kept.exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": 1e9}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"sampler": "huen"}, "sampler"),
        ({"sampler": "../../train"}, "sampler"),
        ({"sampler": ["heun"]}, "sampler"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"checkpoint": {}}, "checkpoint"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_its_field(port, change, word):
    got, body = answer(port, "/draw", {**WISH, **change})
    assert got.status == 400
    assert word in json.loads(body)["error"]


def test_other_sites_and_other_paths_are_refused(port):
    assert answer(port, "/", Host="evil.example")[0].status == 403
    assert answer(port, "/draw", WISH, Host="evil.example:80")[0].status == 403
    plain = {"Content-Type": "text/plain"}  # what another site may send unasked
    assert answer(port, "/draw", WISH, **plain)[0].status == 415
    assert answer(port, "/draw", ["x" * 70_000])[0].status == 413
    assert answer(port, "/draw", ["no wish"])[0].status == 400
    for path in ("/config.yaml", "/favourites/../config.yaml", "/favourites/%2e%2e/config.yaml"):
        assert answer(port, path)[0].status == 404
    assert answer(port, "/forget", {"name": "../config.yaml"})[0].status == 404
    assert answer(port, "/nowhere", {})[0].status == 404


def test_only_this_machine_unless_it_is_said(monkeypatch):
    for here in ("127.0.0.1", "::1", "localhost"):
        refuse_strangers(here, False)
    with pytest.raises(ValueError, match="--anyone"):
        refuse_strangers("0.0.0.0", False)
    refuse_strangers("0.0.0.0", True)
    other = [(socket.AF_INET, 0, 0, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: other)
    with pytest.raises(ValueError, match="--anyone"):
        refuse_strangers("localhost", False)  # a name is judged by where it leads
