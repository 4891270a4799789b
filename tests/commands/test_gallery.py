"""The gallery over HTTP, as its page talks to it."""

import base64
import io
import json
import socket
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
from miniature import first_stage, second_stage
from PIL import Image

from ldm.commands import main
from ldm.commands.gallery import refuse_strangers
from ldm.commands.gallery_drawing import FAVOURITES, Studio, Wish
from ldm.commands.gallery_pages import serve

WISH = {"prompt": "red apple", "sampler": "heun", "steps": 3, "guidance": 2.0, "seed": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("gallery")
    first_stage(root)
    second_stage(root)
    return root


@contextmanager
def served(studio):
    server = serve(studio, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def port(root):
    with served(Studio([str(root / "second")], "cpu", None)) as port:
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


def pixels(address):
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return picture.size, picture.tobytes()


def test_a_picture_forms_step_by_step_into_what_sample_draws(root, port, tmp_path, monkeypatch):
    wish = {**WISH, "checkpoint": "second/step-00000002"}
    got, body = answer(port, "/draw", wish)
    assert got.status == 200
    frames = [json.loads(line) for line in body.splitlines()]
    assert [frame.get("passes") for frame in frames] == [1, 2, 3, 4, 5, None]  # Heun's last is one
    progress = [frame["progress"] for frame in frames[:-1]]
    assert progress == sorted(progress)
    assert progress[0] == 0.0
    options = ["--seed", "5", "--sampler", "heun", "--steps", "3", "--guidance", "2"]
    words = ["ldm", "sample", root / "second", "red apple", *options, "--out", tmp_path]
    monkeypatch.setattr("sys.argv", [str(word) for word in [*words, "--device", "cpu"]])
    assert main() == 0
    with Image.open(tmp_path / "000000.png") as picture:
        assert pixels(frames[-1]["image"]) == (picture.size, picture.tobytes())
    assert pixels(frames[0]["image"])[1] != pixels(frames[-1]["image"])[1]


def test_two_checkpoints_differ_and_one_repeats_itself(port):
    def last(step):
        _, body = answer(port, "/draw", {**WISH, "checkpoint": f"second/step-0000000{step}"})
        return pixels(json.loads(body.splitlines()[-1])["image"])

    assert last(1) != last(2)
    assert last(1) == last(1)


def test_a_favourite_keeps_its_settings(root, port):
    wish = {**WISH, "checkpoint": "second/step-00000001", "negative": "blue"}
    for _ in range(2):  # twice is once
        _, body = answer(port, "/keep", wish)
        (kept,) = json.loads(body)
    assert kept["wish"] == wish
    got, body = answer(port, f"/favourites/{kept['name']}")
    assert got.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.info["prompt"] == "red apple"
        assert picture.info["checkpoint"] == "second/step-00000001"
    assert json.loads(answer(port, "/offer")[1])["favourites"] == [kept]
    assert [p.name for p in (root / "second" / FAVOURITES).iterdir()] == [kept["name"]]
    assert json.loads(answer(port, "/forget", {"name": kept["name"]})[1]) == []
    assert list((root / "second" / FAVOURITES).iterdir()) == []


def test_the_page_begins_with_the_runs_own_settings(port):
    offer = json.loads(answer(port, "/offer")[1])
    assert offer["checkpoints"] == ["second/step-00000002", "second/step-00000001"]
    assert (offer["sampler"], offer["steps"], offer["guidance"]) == ("dpmpp_2m", 3, 2.5)
    got, page = answer(port, "/")
    assert got.status == 200
    assert "default-src 'none'" in got.headers["Content-Security-Policy"]
    assert b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in page


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"guidance": float("nan")}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"sampler": "huen"}, "sampler"),
        ({"sampler": "../../train"}, "sampler"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"checkpoint": "second/step-00000009"}, "checkpoint"),
        ({"checkpoint": "../first/step-00000001"}, "checkpoint"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_its_field(port, change, word):
    wish = {**WISH, "checkpoint": "second/step-00000001", **change}
    got, body = answer(port, "/draw", wish)
    assert got.status == 400
    assert word in json.loads(body)["error"]


def test_other_sites_and_other_paths_are_refused(port):
    assert answer(port, "/", Host="evil.example")[0].status == 403
    assert answer(port, "/draw", WISH, Host="evil.example:80")[0].status == 403
    plain = {"Content-Type": "text/plain"}  # what another site may send unasked
    assert answer(port, "/draw", WISH, **plain)[0].status == 415
    assert answer(port, "/draw", ["x" * 70_000])[0].status == 413
    for path in ("/config.yaml", "/favourites/../config.yaml", "/favourites/%2e%2e/config.yaml"):
        assert answer(port, path)[0].status == 404
    assert answer(port, "/forget", {"name": "../config.yaml"})[0].status == 404


def test_a_page_that_goes_away_ends_its_drawing(root):
    studio, passes = Studio([str(root / "second")], "cpu", None), []
    wish = Wish.of({**WISH, "steps": 900, "checkpoint": "second/step-00000001"})

    def gone(glimpse):
        passes.append(glimpse.passes)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        studio.draw(wish, gone)
    assert passes == [1]
    short = Wish.of({**WISH, "steps": 1, "checkpoint": "second/step-00000001"})
    assert studio.draw(short, lambda glimpse: None).size == (16, 16)  # nothing is locked


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


def test_what_draws_nothing_is_refused(root):
    with pytest.raises(ValueError, match="stage=diffusion"):
        Studio([str(root / "first")], None, None)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Studio([str(root / "nowhere")], None, None)


def test_the_stages_are_shown_in_pictures(root, tmp_path, monkeypatch):
    words = ["ldm", "stages", root / "second", "--prompt", "red", "--out", tmp_path, "--scale", 1]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert main() == 0
    sizes = {path.name: Image.open(path).size for path in tmp_path.glob("*.png")}
    side = 16 + 2
    assert sizes == {
        "compression.png": ((3 + 4) * side - 2, 16),  # four channels
        "forward.png": (8 * side - 2, 16),
        "denoising.png": (8 * side - 2, 2 * side - 2),
    }
    with Image.open(tmp_path / "denoising.png") as sheet:
        above, below = (sheet.crop((7 * side, y, 7 * side + 16, y + 16)) for y in (0, side))
        assert above.tobytes() == below.tobytes()  # both rows end in the picture
