"""What the gallery draws is what `ldm sample` draws; the pictures of `ldm stages`."""

import argparse
import socket

import pytest
from miniature import first_stage, second_stage
from PIL import Image

from ldm.commands import gallery, sample, stages
from ldm.commands.gallery_drawing import FAVOURITES, Studio
from ldm.commands.gallery_wish import Wish

WISH = {"prompt": "red apple", "sampler": "heun", "steps": 3, "guidance": 2.0, "seed": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("gallery")
    first_stage(root)
    second_stage(root)
    return root


@pytest.fixture(scope="module")
def studio(root):
    return Studio([str(root / "second")], "cpu", None)


def wish(step, **changes):
    return Wish.of({**WISH, "checkpoint": f"second/step-{step:08d}", **changes})


def options(add_parser, *words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--port", 99999), "--port 99999: set 1 to 65535"),
        (("--port", -1), "--port -1: set 1 to 65535"),
        (("--host", "a..b"), "--host a..b: no such address"),
    ],
)
def test_a_place_that_cannot_be_is_named(words, named):
    arguments = options(gallery.add_parser, "gallery", "a-run", *words)
    with pytest.raises(ValueError, match=named):
        gallery.run(arguments)


def test_a_port_that_is_taken_is_named(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = options(gallery.add_parser, "gallery", root / "second", "--port", port)
        with pytest.raises(ValueError, match=f"--port {port}: .*in use; set another"):
            gallery.run(arguments)


def test_a_picture_forms_step_by_step_into_what_sample_draws(root, studio, tmp_path):
    seen = []
    made = studio.draw(wish(2), seen.append)
    assert [glimpse.passes for glimpse in seen] == [1, 2, 3, 4, 5]  # Heun's last step takes one
    progress = [glimpse.progress for glimpse in seen]
    assert progress == sorted(progress)
    assert progress[0] == pytest.approx(0, abs=1e-3)
    assert seen[0].picture.tobytes() != made.tobytes()
    how = ("--seed", 5, "--sampler", "heun", "--steps", 3, "--guidance", 2, "--device", "cpu")
    words = ("sample", root / "second", "red apple", *how, "--out", tmp_path)
    assert sample.run(options(sample.add_parser, *words)) == 0
    with Image.open(tmp_path / "000000.png") as picture:
        assert (made.size, made.tobytes()) == (picture.size, picture.tobytes())


def test_two_checkpoints_differ_and_one_repeats_itself(studio):
    first, again, other = (studio.draw(wish(n), lambda _: None).tobytes() for n in (1, 1, 2))
    assert first == again
    assert first != other
    with pytest.raises(ValueError, match="checkpoint='second/step-00000009'"):
        studio.draw(wish(9), lambda _: None)


def test_a_favourite_keeps_its_settings(root, studio):
    kept = wish(1, negative="blue")
    name = studio.keep(kept)
    assert studio.keep(kept) == name  # twice is once
    (found,) = studio.favourites()
    assert (found["name"], Wish.of(found["wish"])) == (name, kept)
    with Image.open(studio.favourite(name)) as picture:
        assert picture.info["prompt"] == "red apple"
        assert picture.info["checkpoint"] == "second/step-00000001"
    assert studio.favourite("../config.yaml") is None
    (root / "second" / FAVOURITES / "other.png").write_bytes(b"no picture")
    assert len(studio.favourites()) == 1


def test_the_page_begins_with_the_runs_own_settings(studio):
    offer = studio.offer()
    assert offer["checkpoints"] == ["second/step-00000002", "second/step-00000001"]
    assert (offer["sampler"], offer["steps"], offer["guidance"]) == ("dpmpp_2m", 3, 2.5)


def test_a_page_that_goes_away_ends_its_drawing(studio):
    passes = []

    def gone(glimpse):
        passes.append(glimpse.passes)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        studio.draw(wish(1, steps=900), gone)
    assert passes == [1]
    assert studio.draw(wish(1, steps=1), lambda _: None).size == (16, 16)  # nothing is locked


def test_what_draws_nothing_is_refused(root):
    with pytest.raises(ValueError, match="stage=diffusion"):
        Studio([str(root / "first")], None, None)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Studio([str(root / "nowhere")], None, None)


def test_the_stages_are_shown_in_pictures(root, tmp_path):
    words = ("stages", root / "second", "--prompt", "red", "--out", tmp_path, "--scale", 1)
    assert stages.run(options(stages.add_parser, *words)) == 0
    sizes = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as sheet:
            sizes[path.name] = sheet.size
    side = 16 + 2
    assert sizes == {
        "compression.png": ((3 + 4) * side - 2, 16),  # four channels
        "forward.png": (8 * side - 2, 16),
        "denoising.png": (8 * side - 2, 2 * side - 2),
    }
    with Image.open(tmp_path / "denoising.png") as sheet:
        above, below = (sheet.crop((7 * side, y, 7 * side + 16, y + 16)) for y in (0, side))
        assert above.tobytes() == below.tobytes()  # both rows end in the picture
