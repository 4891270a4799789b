"""The `ldm` commands and the Python of the documentation, run as they stand there, on small
untrained models.

Not here: commands that serve, watch or train. `gallery`, `quickstart`, `sweep`, `rerun` and the
`train.py` lines have tests of their own in miniature, and test_docs composes and checks them all.
"""

import json
import re
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from test_docs import NESTED, PAGES, ROOT, commands

sys.path.insert(0, str(Path(__file__).parent / "commands"))
from miniature import first_stage, second_stage

from ldm.assets import resolve
from ldm.commands import main

ELSEWHERE = ("quickstart", "gallery", "sweep", "runs --watch", "runs rerun", "evaluate", "doctor")
WHOLE = (  # they encode every shipped picture
    "ldm encode runs/trial-ae runs/trial-latents",
    "ldm encode runs/folder-autoencoder my-latents",
)
FIRST = "quickstart-autoencoder emoji-autoencoder folder-autoencoder trial-ae second-try "
FIRST += "FIRST_STAGE A B NAME"
SECOND = "quickstart-diffusion folder-diffusion emoji-diffusion emoji-full emoji-long"
FOUND = {line: page.name for page in PAGES for line in commands(page) if line.startswith("ldm ")}

# Of each page the blocks, with the file that a block is shown to be.
PYTHON = {
    page: re.findall(r"(?:^`(\w+\.py)`\n\n)?^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    for page in (ROOT / "README.md", ROOT / "docs" / "python.md")
}


def executed():
    """The first of each verb by default, the rest among the slow ones."""
    seen = set()
    for line, page in FOUND.items():
        verbs = tuple(line.split()[1 : 3 if line.split()[1] in NESTED else 2])
        if line.startswith(tuple(f"ldm {verb}" for verb in ELSEWHERE)):
            continue
        slow = verbs in seen or line in WHOLE
        seen.add(verbs)
        yield pytest.param(line, id=f"{page}: {line[:60]}", marks=pytest.mark.slow if slow else ())


LINES = list(executed())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for run in (first_stage(root), second_stage(root)):
        lines = [{"step": s, "train/loss": 1 / s, "val/psnr": 20 + s} for s in (1, 2)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A folder as the pages have it: runs, pictures, shards, prompts."""
    (tmp_path / "runs").mkdir()
    for model, names in (("first", FIRST), ("second", SECOND)):
        for name in names.split():
            (tmp_path / "runs" / name).symlink_to(models / model)
    (tmp_path / "FOLDER").symlink_to("runs")
    (tmp_path / "my-shards").mkdir()
    (tmp_path / "my-pictures").mkdir()
    with tarfile.open(next(Path(resolve("asset:emoji")).glob("val-*.tar"))) as shard:
        few = shard.getmembers()[:64]
        for part in ("train-00000.tar", "val-00000.tar"):
            with tarfile.open(tmp_path / "my-shards" / part, "w") as out:
                for member in few:
                    out.addfile(member, shard.extractfile(member))
        shard.extractall(tmp_path / "my-pictures", few, filter="data")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    (tmp_path / "prompts.txt").write_text("red apple\nred heart\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_documentation_runs(line, place, monkeypatch, capsys):
    if line.startswith("ldm shards make"):
        shutil.rmtree(place / "my-shards")
    monkeypatch.setattr("sys.argv", shlex.split(line))
    code = main()
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out
    assert said.err == ""


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
@pytest.mark.filterwarnings("default")  # Lightning's remarks, which trainings keep from users
def test_the_python_of_the_documentation_runs(page, place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("LDM_TRUST", "")
    names = {"__name__": "example"}
    for number, (file, code) in enumerate(PYTHON[page], 1):
        if file:
            (place / file).write_text(code)
        else:
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)


def test_most_are_run():
    assert len(LINES) > 25
    assert set(WHOLE) < set(FOUND)
    assert sum(map(len, PYTHON.values())) > 8
