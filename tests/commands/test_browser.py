"""Our pages in a real browser: no console errors, nothing wider than a phone, light and dark.

Opt-in (`pytest -m slow`), since it needs Chromium and the processor for a while. Screenshots stay
in pytest's folder for who wants to look; docs/pictures holds those of real runs.
"""

import json
import threading
from contextlib import contextmanager

import pytest
from chromium import PROGRAM, Browser
from miniature import first_stage, second_stage
from PIL import Image

from ldm.commands import main
from ldm.commands.gallery_drawing import Studio
from ldm.commands.gallery_pages import serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium"),
]
SIZES = [(1280, 900, False), (1280, 900, True), (390, 844, False), (390, 844, True)]


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    first_stage(root)
    run = second_stage(root)
    lines = [{"step": s, "train/loss": 1 / s, "val/loss": 1 / s + 0.1} for s in range(1, 400)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run / "samples").mkdir()
    for step in (1, 2):
        Image.new("RGB", (64, 64), "red").save(run / "samples" / f"samples-{step:08d}.png")
    return root


@contextmanager
def gallery(root):
    server = serve(Studio([str(root / "second")], "cpu", None), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_person_draws_compares_keeps_and_takes_back(browser, runs, tmp_path):
    with gallery(runs) as address:
        browser.errors.clear()
        browser.open(address)
        browser.wait("document.getElementById('left').options.length === 2")
        browser.run("document.getElementById('prompt').value = 'red apple'")
        browser.run("document.getElementById('seed').value = 7")
        browser.run("document.getElementById('right').selectedIndex = 2")
        browser.run("document.getElementById('draw').click()")
        browser.wait("document.querySelectorAll('.keep:not(:disabled)').length === 2")
        shown = "[...document.querySelectorAll('figure img')].map(image => image.src)"
        left, right = browser.run(shown)
        assert left.startswith("data:image/png")
        assert left != right
        frames = browser.run("document.querySelector('.time').max")
        assert frames == "3"  # three passes and the picture
        browser.run(
            "(time => { time.value = 0; time.dispatchEvent(new Event('input')); })"
            "(document.querySelector('.time'))"
        )
        assert browser.run(shown)[0] != left
        browser.run("document.querySelector('.keep').click()")
        browser.wait("document.querySelectorAll('#kept img').length === 1")
        browser.wait("document.querySelector('#kept img').naturalWidth === 16")
        browser.picture(tmp_path / "gallery.png", whole=True)
        browser.run("document.getElementById('prompt').value = 'something else'")
        browser.run("document.querySelector('#kept .show').click()")
        assert browser.run("document.getElementById('prompt').value") == "red apple"
        browser.wait("document.querySelectorAll('.keep:not(:disabled)').length === 2")
        assert browser.run(shown)[0] == left  # the same settings, the same picture
        browser.run("document.querySelector('#kept .forget').click()")
        browser.wait("document.getElementById('favourites').hidden")
        assert browser.errors == []


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_gallery_fits(browser, runs, tmp_path, width, height, dark):
    with gallery(runs) as address:
        browser.errors.clear()
        browser.open(address, width, height, dark)
        browser.wait("document.getElementById('left').options.length === 2")
        assert browser.too_wide() <= 0
        back = browser.run("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
        browser.picture(tmp_path / "gallery.png", whole=True)
        assert browser.errors == []


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_report_fits(browser, runs, tmp_path, monkeypatch, width, height, dark):
    page = tmp_path / "report.html"
    words = ["ldm", "report", runs / "second", runs / "first", "--out", page]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert main() == 0
    browser.errors.clear()
    browser.open(page.as_uri(), width, height, dark)
    assert browser.too_wide() <= 0
    assert browser.run("document.querySelectorAll('svg').length") == 2
    assert browser.run("document.querySelector('.samples img').naturalWidth") == 64
    label = "document.querySelector('.samples .dim').textContent"
    assert browser.run(label) == " samples, step 2"
    browser.run(
        "(slider => { slider.value = 0; slider.dispatchEvent(new Event('input')); })"
        "(document.querySelector('.samples input'))"
    )
    assert browser.run(label) == " samples, step 1"
    browser.picture(tmp_path / "report.png", whole=True)
    assert browser.errors == []


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_sweep_fits(browser, tmp_path, width, height, dark):
    optuna = pytest.importorskip("optuna")
    from ldm.commands.sweep_page import write_page

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="lr")
    asked = {"over": [], "override": ["experiment=x"], "metric": "val/loss", "maximise": False}
    for key, value in asked.items():
        study.set_user_attr(key, value)

    def judged(trial):
        rate = trial.suggest_float("module.optimizer.lr", 1e-5, 1e-1, log=True)
        return rate + (trial.suggest_categorical("critic", ["none", "emoji"]) == "none")

    study.optimize(judged, 12)
    browser.errors.clear()
    browser.open(write_page(study, tmp_path).as_uri(), width, height, dark)
    assert browser.too_wide() <= 0
    assert browser.run("document.querySelectorAll('circle').length") == 24
    assert browser.run("document.querySelectorAll('.bar').length") == 2
    browser.picture(tmp_path / "sweep.png", whole=True)
    assert browser.errors == []
