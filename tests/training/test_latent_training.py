"""Training from latent shards is training from pictures; and what is refused about them."""

import argparse

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from run_in_process import run
from tiny import FIRST, SECOND, make_shards, numbers

from ldm.commands import encode
from ldm.commands.parts import AutoencoderStage, DiffusionStage
from ldm.data import LatentData, ShardData
from ldm.frozen import LatentCodec
from ldm.frozen.captions import OpenClipCaptions
from ldm.frozen.clip import load_clip
from ldm.frozen.sizes import SizedCaptions
from ldm.training.conditioning import Conditioning
from ldm.training.data import Seen, refuse_different_data
from ldm.training.diffusion import LatentDiffusionModule
from ldm.types import Condition, Posterior


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Drawing and measuring pictures is tested elsewhere, and costs seconds a run."""
    patch = pytest.MonkeyPatch()
    for kind in (AutoencoderStage, DiffusionStage):
        patch.setattr(kind, "callbacks", lambda *_: [])
    yield
    patch.undo()


def ldm_encode(*words):
    parser = argparse.ArgumentParser()
    encode.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["encode", *map(str, words)])
    return arguments.func(arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory, without_pictures):
    """A first stage of two steps, its latents, and a second stage trained on the pictures."""
    root = tmp_path_factory.mktemp("latents")
    make_shards(root / "shards")
    first = FIRST.replace("max_steps=7", "max_steps=2").replace("warmup=2", "warmup=1")
    assert run(root, "first", first) == 0
    assert (
        ldm_encode(root / "first", root / "latents", "--shards", root / "shards/train-0.tar") == 0
    )
    assert run(root, "pictures", f"{SECOND} first_stage={root}/first") == 0
    return root


def from_latents(root, latents="latents"):
    """Settings of the same training, from latents."""
    return (
        f"{SECOND} first_stage={root}/first data.train._target_=ldm.data.LatentData "
        f"~data.train.size ~data.train.keep data.train.shards={root}/{latents}/train-*.tar"
    )


def losses(root, name):
    return [line["train/loss"] for line in numbers(root, name) if "train/loss" in line]


def test_the_loss_curve_is_that_of_the_pictures_and_needs_neither_network(root, monkeypatch):
    """The same draws, so the same losses, up to the half precision of what is stored."""
    training = []
    ordinary = LatentDiffusionModule.training_step

    def step(self, *arguments):
        training.append(True)
        loss = ordinary(self, *arguments)
        training.pop()
        return loss

    def watched(function):
        def call(self, *arguments):
            assert not training, f"{function.__qualname__} was called for a training batch"
            return function(self, *arguments)

        return call

    monkeypatch.setattr(LatentDiffusionModule, "training_step", step)
    monkeypatch.setattr(LatentCodec, "encode", watched(LatentCodec.encode))
    monkeypatch.setattr(OpenClipCaptions, "__call__", watched(OpenClipCaptions.__call__))
    assert run(root, "from-latents", from_latents(root)) == 0
    wanted, found = losses(root, "pictures"), losses(root, "from-latents")
    assert len(wanted) == 7
    assert found[0] == pytest.approx(wanted[0], rel=2**-10)
    assert found == pytest.approx(wanted, rel=2**-7)  # Adam's first steps magnify


def test_half_precision_is_all_that_differs(root, monkeypatch):
    """Pictures again, their moments and text states rounded as they are stored."""
    encode_batch, say = LatentCodec._posterior, OpenClipCaptions.__call__

    def rounded(posterior):
        log_variance = (2 * posterior.std.log()).half().float()
        return Posterior(posterior.mean.half().float(), (log_variance / 2).exp())

    def rounded_text(text):
        tokens, pooled = (part.half().float() for part in (text.tokens, text.pooled))
        return Condition(tokens, text.mask, pooled)

    monkeypatch.setattr(LatentCodec, "_posterior", lambda *a: rounded(encode_batch(*a)))
    monkeypatch.setattr(OpenClipCaptions, "__call__", lambda *a: rounded_text(say(*a)))
    assert run(root, "rounded", f"{SECOND} first_stage={root}/first") == 0
    assert run(root, "stored", from_latents(root)) == 0
    assert losses(root, "stored") == pytest.approx(losses(root, "rounded"), rel=1e-4)


def test_latents_of_other_networks_or_pictures_are_refused(root, tmp_path):
    settings = from_latents(root)
    with pytest.raises(ValueError, match="made by another text encoder"):
        run(root, "x", f"{settings} +text.encoder.layer=-2")
    with pytest.raises(ValueError, match=r"on #ffffff, data\.val makes them to .* on #000000"):
        run(root, "x", f"{settings} +data.val.background=black")
    with pytest.raises(ValueError, match=r"latent shards do not hold the pictures' sizes"):
        run(root, "x", f"{settings} text.sizes=true +backbone.pooled_width=1600")
    with pytest.raises(ValueError, match=r"set image_size to what was encoded"):
        run(root, "x", f"{settings} image_size=64")
    with pytest.raises(ValueError, match="these text states were made by another text encoder"):
        run(root, "x", f"{settings} text=own backbone=unet_own_text")
    again = (root / "first", root / "latents", "--shards", root / "shards/train-0.tar")
    with pytest.raises(ValueError, match=r"--text text=own: half precision does not hold"):
        ldm_encode(*again, "--text", "text=own")
    with pytest.raises(ValueError, match=r"--text text=sdxl: latent shards do not hold the pict"):
        ldm_encode(*again, "--text", "text=sdxl")
    with pytest.raises(ValueError, match="choose another folder or remove it"):
        ldm_encode(*again, "--text", "+text.encoder.layer=-2")
    with pytest.raises(ValueError, match=r"--text image_size=64: only the group text"):
        ldm_encode(*again, "--text", "image_size=64")
    assert not (root / "x").exists()


def test_ranks_share_the_encoding_and_go_on_where_they_were_stopped(root, tmp_path, monkeypatch):
    """As torchrun tells them. What they write is what one process writes, byte for byte."""
    sources = [root / "shards/train-0.tar", root / "shards/val-0.tar"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert ldm_encode(root / "first", alone, "--shards", *sources, "--flip") == 0
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert ldm_encode(root / "first", shared, "--shards", *sources, "--flip") == 0
        assert len(list(shared.glob("*.tar"))) == 2 - rank
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    (shared / "train-00001.tar").unlink()
    kept = (shared / "train-00000.tar").stat().st_mtime_ns
    assert ldm_encode(root / "first", shared, "--shards", *sources, "--flip") == 0
    assert (shared / "train-00000.tar").stat().st_mtime_ns == kept
    for path in alone.iterdir():
        assert path.read_bytes() == (shared / path.name).read_bytes()
    data = LatentData(str(shared / "train-*.tar"), flip=True)
    assert (len(data), data.layout.views) == (14, 2)
    assert set(data.made_by) == {"first_stage", "text", "source", "transforms"}


def embedded(sizes):
    """As diffusers' SDXL pipeline does it."""
    options = {"flip_sin_to_cos": True, "downscale_freq_shift": 0}
    return get_timestep_embedding(sizes, 256, **options).flatten()


def test_the_network_is_told_each_pictures_size_and_crop(root, monkeypatch):
    """SDXL's conditioning: as stored, what was cut off, as wanted; the same with a dropped caption.
    The validation pictures' are theirs, a sampled picture's are what is wanted."""
    told = []
    ordinary = Conditioning.told

    def sized(self, captions, codec, batch, *rest, **more):
        found = ordinary(self, captions, codec, batch, *rest, **more)
        told.append((found.pooled, batch["original"].tolist(), batch["corner"].tolist()))
        return found

    monkeypatch.setattr(Conditioning, "told", sized)
    settings = f"{SECOND} first_stage={root}/first".replace("max_steps=7", "max_steps=3")
    settings += " text.sizes=true"
    with pytest.raises(ValueError, match=r"backbone\.pooled_width='\$\{text\.pooled_width\}'"):
        run(root, "deaf", settings)
    settings += " +backbone.pooled_width=${text.pooled_width} image_size=16 +data.train.crop=random"
    assert run(root, "sized", settings) == 0
    assert len(told) == 7  # three steps, with a caption and without, and a batch of validation
    for pooled, originals, corners in told:
        for row, original, corner in zip(pooled, originals, corners, strict=True):
            assert original == [32, 32]
            sizes = torch.tensor([*original, *corner, 16, 16]).float()
            wanted = get_timestep_embedding(
                sizes, 256, flip_sin_to_cos=True, downscale_freq_shift=0
            )
            torch.testing.assert_close(row[-6 * 256 :], wanted.flatten())
    encoder = OpenClipCaptions(load_clip("asset:emoji_clip"))
    said = SizedCaptions(encoder, 16)(["ball"]).pooled[0]
    assert torch.equal(said[:-1536], encoder(["ball"]).pooled[0])
    sizes = torch.tensor([16.0, 16, 0, 0, 16, 16])
    torch.testing.assert_close(said[-1536:], embedded(sizes))


def test_another_data_set_is_refused_until_it_is_allowed(root, capsys):
    make_shards(root / "other", seed=1)
    settings = f"{SECOND} first_stage={root}/first data.folder={root}/other"
    settings = settings.replace("max_steps=7", "max_steps=8")
    with pytest.raises(ValueError, match=r"other pictures than .*data\.allow_change=true"):
        run(root, "pictures", settings)
    assert run(root, "pictures", f"{settings} data.allow_change=true") == 0
    assert (
        "data: other pictures, as data.allow_change says, from step 7 on" in capsys.readouterr().out
    )
    assert len(losses(root, "pictures")) == 8


def test_pictures_that_cannot_be_read_end_a_training_with_code_3(root, capsys):
    """FAULTS.md, row 9: over the budget, and one line says which."""
    make_shards(root / "broken")
    path = root / "broken" / "train-0.tar"
    assert len(ShardData(str(path), 32)) == 10  # writes the index
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"IDAT", b"IDOT"))
    settings = f"{SECOND} first_stage={root}/first data.folder={root}/broken"
    assert run(root, "broken-pictures", settings) == 3
    said = capsys.readouterr().err
    assert "8 samples in a row are unreadable" in said
    assert "train-0.tar, key 000" in said


def seen(host, train="a", val="b", positions=(0, 1)):
    return Seen(host, {"data.train": train, "data.val": val}, list(positions))


def test_ranks_with_other_data_or_the_same_rows_are_refused():
    refuse_different_data([seen("one"), seen("two", positions=[2, 3])])
    with pytest.raises(
        ValueError, match=r"data\.val: rank 1 on two has other data than rank 0 on o"
    ):
        refuse_different_data([seen("one"), seen("two", val="c", positions=[2, 3])])
    with pytest.raises(ValueError, match=r"ranks 0 and 1 \(on two\) would read the same samples"):
        refuse_different_data([seen("one"), seen("two", positions=[1, 2])])
