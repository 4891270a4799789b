import ast
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from shard_files import encoded, picture, write_shards, write_tar

import ldm.data
from ldm.commands.encode import pictures_of
from ldm.data import Keep, Reading

CONF = Path(__file__).parents[2] / "conf"
CHOICES = ["emoji", "shards", "buckets"]


@pytest.fixture
def composed():
    """What `train.py` would see of the data."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: compose("train", ["stage=autoencoder", *overrides])


@pytest.mark.parametrize("name", CHOICES)
def test_shipped_data_can_be_built_and_ordered(composed, tmp_path, name):
    write_shards(tmp_path, [6])
    (tmp_path / "val-00000.tar").write_bytes((tmp_path / "train-00000.tar").read_bytes())
    folder = [] if name == "emoji" else [f"data.folder={tmp_path}"]
    config = composed(f"data={name}", *folder)
    train, val = (instantiate(config.data[split], _convert_="all") for split in ("train", "val"))
    assert len(train.order(0, 2).rows(0, 2).samples) == 2
    assert len(list(val.captions())) == len(val)


@pytest.mark.parametrize("name", ["shards", "buckets"])
def test_what_a_refusal_tells_to_set_can_be_typed_and_helps(composed, tmp_path, name):
    """A cut shard, and a picture without a caption: to train and to validate on."""
    write_shards(tmp_path, [6])
    cut = (tmp_path / "train-00000.tar").read_bytes().rstrip(b"\0")[:-600]
    for split in ("train", "val"):
        (tmp_path / f"{split}-00000.tar").write_bytes(cut)
        write_tar(tmp_path / f"{split}-00001.tar", [("a.png", encoded(picture(9)))])
    typed = [f"data={name}", f"data.folder={tmp_path}"]
    for said in ("data.reading.salvage=true", "data.keep.missing_caption=drop"):
        with pytest.raises(Exception, match=re.escape(said)):
            instantiate(composed(*typed).data.train, _convert_="all")
        typed.append(said)
    config = composed(*typed)
    assert [
        len(instantiate(config.data[split], _convert_="all")) for split in ("train", "val")
    ] == [5, 5]


def test_latents_are_encoded_of_the_pictures_that_were_trained_on(composed, tmp_path):
    """Those that `keep` left; `image_size` is all that is cut."""
    write_shards(tmp_path, [4])
    write_tar(tmp_path / "train-00001.tar", [("a.png", encoded(picture(9)))])
    for name in ("shards", "buckets"):
        typed = (f"data={name}", f"data.folder={tmp_path}", "data.keep.missing_caption=drop")
        saved = {"data": OmegaConf.to_container(composed(*typed).data, resolve=True)}
        data = pictures_of(saved | {"image_size": 64}, "runs/x", None)
        assert (len(data), data.size) == (4, 64)
    with pytest.raises(ValueError, match="does not say which shards it was trained on"):
        pictures_of({"image_size": 64}, "runs/x", None)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (Reading, "window", 0),
        (Reading, "ahead", -1),
        (Reading, "retries", -1),
        (Reading, "timeout", 0.0),
        (Reading, "cache_gigabytes", -1.0),
        (Reading, "tolerate", 1.0),
        (Keep, "min_side", -4),
        (Keep, "max_pixels", 0),
        (Keep, "max_aspect", 0.5),
    ],
)
def test_values_that_cannot_be_are_refused_under_their_key(part, name, value):
    key = f"data.{part.__name__.lower()}.{name}"
    with pytest.raises(ValueError, match=rf"^{key} is {value!r}; set "):
        part(**{name: value})


def said_keys():
    """Configuration keys in all that the package says: its strings without the docstrings."""
    for path in sorted(Path(ldm.data.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in docstrings:
                yield from re.findall(r"\bdata\.\w+(?:\.\w+)*", str(node.value))


def test_every_key_that_is_named_can_be_typed(composed):
    keys = sorted(set(said_keys()) - {"data.md"})
    assert "data.reading.salvage" in keys
    for name in CHOICES:  # a key may belong to one of them only
        keys = [key for key in keys if not accepted(composed, f"data={name}", f"{key}=null")]
    assert not keys


def accepted(composed, *typed):
    try:
        return bool(composed(*typed))
    except ConfigCompositionException:
        return False
