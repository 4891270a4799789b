"""What the documentation tells people to type exists, and its worked examples run."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from ldm.commands import parser_of_all
from ldm.commands.building import build
from ldm.commands.building import check as check_node
from ldm.commands.check import checked
from ldm.commands.composing import choices, composed
from ldm.commands.errors import CONF
from ldm.commands.fitting import plan
from ldm.data import ShardData, normalise, validation_batches
from ldm.diffusion import RectifiedFlow, UniformGrid

sys.path.insert(0, str(Path(__file__).parent / "diffusion"))
from exact_denoisers import GaussianData, normal, nothing

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = dict(
    re.findall(
        r"`((?:ldm|conf)/[\w/]+\.(?:py|yaml))`\n\n```\w+\n(.*?)```",
        (ROOT / "docs" / "extending.md").read_text(),
        re.S,
    )
)
NESTED = ("config", "runs", "shards", "stats")  # verbs with verbs of their own


def commands(page):
    """Whole command lines of the page's blocks, continued lines joined. What is shown with an
    ellipsis stands for something and is left out."""
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", page.read_text(), re.S)
    for line in re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines():
        for part in line.split(" #")[0].strip().removeprefix("$ ").split(" && "):
            if re.match(r"(ldm|python train\.py) ", part) and not re.search(r"…|\.\.\.", part):
                yield part


def mentions(page):
    """`ldm VERB …` within sentences and tables: whole commands or parts of them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return re.findall(r"`(ldm [a-z][^`\n]*)`", text)


LINES = [
    pytest.param(line, id=f"{page.name}: {line[:60]}")
    for page in PAGES
    for line in dict.fromkeys(commands(page))
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_documentation_is_one(line, monkeypatch):
    monkeypatch.setattr("ldm.commands.check.find_spec", lambda name: name)
    words = shlex.split(line)
    overrides = [word for word in words[2:] if not word.startswith("-")]
    if words[0] == "ldm":
        parsed = parser_of_all().parse_args(words[1:])
        overrides = parsed.override if words[1] in ("check", "sweep") else []  # others are run
    if overrides and not {"-m", "-sc", "--cfg"} & set(words):
        checked(composed(overrides))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_mentioned_command_has_the_options_that_are_mentioned(page, capsys):
    for words in map(str.split, mentions(page)):
        verbs = words[1 : 3 if words[1] in NESTED and len(words) > 2 else 2]
        with pytest.raises(SystemExit) as end:
            parser_of_all().parse_args(
                [*(verb for verb in verbs if re.fullmatch("[a-z]+", verb)), "--help"]
            )
        said = capsys.readouterr().out
        assert end.value.code == 0, words
        for option in (word for word in words if word.startswith("--")):
            assert option in said, words


def test_enough_commands_are_read():
    assert len(LINES) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def extended(tmp_path, monkeypatch):
    """The files of extending.md beside those of the project, for one test."""
    for path in CONF.rglob("*.yaml"):
        copy = tmp_path / "conf" / path.relative_to(CONF)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        assert not (ROOT / name).exists()
        file.write_text(text)
    for package in ("diffusion", "models", "metrics"):
        found = import_module(f"ldm.{package}")
        monkeypatch.setattr(found, "__path__", [*found.__path__, str(tmp_path / "ldm" / package)])
    from ldm.commands import schema

    for module in ("errors", "composing", "choices", "schema"):
        monkeypatch.setattr(f"ldm.commands.{module}.CONF", tmp_path / "conf")
    schema.entries.cache_clear()
    yield tmp_path
    schema.entries.cache_clear()
    for name in ("diffusion.midpoint", "models.plain", "metrics.sameness"):
        sys.modules.pop(f"ldm.{name}", None)


def test_the_worked_examples_are_choices_that_pass_the_checks(extended):
    assert len(FILES) == 8
    latents = ["latent={channels: 8, size: 8}"]
    config = composed(
        ["experiment=emoji/diffusion", "backbone=plain", "sampler=midpoint", *latents]
    )
    checked(config)
    assert dict(plan(config))["network"].startswith("0.2")
    first = composed(["experiment=birds/first"])
    checked(first)
    assert dict(plan(first))["first"].startswith("make the data")
    assert "midpoint" in choices("sampler")
    with pytest.raises(ValueError, match="width"):
        checked(composed(["experiment=emoji/diffusion", "backbone=plain", "backbone.width=0"]))


@pytest.mark.usefixtures("extended")
def test_the_sampler_of_the_worked_example_is_of_second_order():
    sampler = import_module("ldm.diffusion.midpoint").Midpoint
    data = GaussianData(RectifiedFlow())
    noise = normal(4, 2, 2, 2)
    ends = [sampler(steps, UniformGrid())(data, noise, nothing(4)) for steps in (16, 32, 512)]
    errors = [(end - ends[-1]).abs().max() for end in ends[:2]]
    assert errors[0] / errors[1] > 3


def test_the_metric_of_the_worked_example_tells_one_picture_from_many(extended):
    node = yaml.safe_load(FILES["conf/metrics/sameness.yaml"])
    check_node(node["metrics"]["sameness"], "metrics.sameness", ("features",))
    features = build(node["features"], "features")
    metric = import_module("ldm.metrics.sameness").Sameness(features)
    val = ShardData("asset:emoji/val-*.tar", 64)
    batch = next(iter(validation_batches(val, batch=16, rank=0, world=1, workers=0)))
    images = normalise(batch["image"])
    metric.update(images[:1].expand(4, -1, -1, -1), [""] * 4)
    assert float(metric.compute()) == pytest.approx(1.0, abs=1e-6)
    metric.reset()
    metric.update(images, [""] * 16)
    assert float(metric.compute()) < 0.99


def test_the_site_has_every_page_in_its_order():
    """Sphinx's table of contents, and the table that people read in the repository."""
    index = (ROOT / "docs" / "index.md").read_text()
    toctree = re.search(r"```\{toctree\}(.*?)```", index, re.S)[1].split("\n\n")[1].split()
    shown = [name.removesuffix(".md") for name in re.findall(r"\]\(([\w-]+\.md)\)", index)]
    assert toctree == [*shown, "api/modules"]
    assert {*shown, "index"} == {page.stem for page in PAGES} - {"README"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """Record: docs/index.md. Two minutes of processor."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    words = ["-m", "sphinx", "-E", "-W", "--keep-going", ROOT / "docs", tmp_path / "site"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "ldm.diffusion.samplers.html").read_text()
    assert "Song et al. 2020" in page
