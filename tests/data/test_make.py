import json
import re

import numpy as np
import pytest
from PIL import Image as Picture
from shard_files import encoded, picture, write_folder
from webdataset.tariterators import group_by_keys, tar_file_iterator

from ldm.data import Keep, ShardData
from ldm.data.entries import keys_of, with_captions
from ldm.data.hold_out import held_out
from ldm.data.losses import Losses
from ldm.data.make import Encoding, make_shards
from ldm.data.sources import ASSETS
from ldm.data.tables import entries_of

TONES = ["dark", "light", "medium"]


def of_folder(folder, keep=None):
    losses = Losses()
    found = entries_of(str(folder), keep or Keep(), losses)
    losses.refuse(losses.count + len(found.entries))
    return found.entries


def make(
    source, destination, encoding=None, shard_size=4, jobs=1, every=0, pattern=None, losses=None
):
    entries = of_folder(source)
    held = held_out([entry.caption for entry in entries], every, pattern)
    splits = {
        "train": [entry for entry, out in zip(entries, held, strict=True) if not out],
        "val": [entry for entry, out in zip(entries, held, strict=True) if out],
    }
    return make_shards(
        splits,
        destination,
        encoding or Encoding(),
        shard_size=shard_size,
        jobs=jobs,
        command="ldm shards make",
        progress=lambda done, total: None,
        losses=losses or Losses(),
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_picture_arrives_bit_for_bit(tmp_path):
    source = write_folder(tmp_path / "in", [f"number {i}" for i in range(10)])
    manifest = make(source, tmp_path / "out")
    assert manifest["samples"] == {"train": 10}
    data = ShardData(str(tmp_path / "out/train-*.tar"), 16)
    batch, faults = data.read(data.order(0, 1).rows(0, 10))
    assert not faults
    assert sorted(batch["caption"]) == [f"number {i}" for i in range(10)]
    for image, key in zip(batch["image"], batch["key"], strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), picture(int(key)))


def test_webdataset_reads_our_shards(tmp_path):
    source = write_folder(tmp_path / "in", [f"number {i}" for i in range(5)])
    make(source, tmp_path / "out", shard_size=100)
    with open(tmp_path / "out/train-00000.tar", "rb") as file:
        members = [{"__url__": "x", **member} for member in tar_file_iterator(file)]
    samples = list(group_by_keys(members))
    assert sorted(sample["__key__"] for sample in samples) == [f"{i:04d}" for i in range(5)]
    for sample in samples:
        assert sample["txt"].decode() == f"number {int(sample['__key__'])}"
        assert sample["png"] == (source / f"{sample['__key__']}.png").read_bytes()


def test_shards_are_the_same_with_any_number_of_processes(tmp_path):
    source = write_folder(tmp_path / "in", [f"number {i}" for i in range(9)])
    make(source, tmp_path / "one", Encoding(size=8))
    make(source, tmp_path / "two", Encoding(size=8), jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_transparent_picture_lies_on_the_background(tmp_path):
    """Half-transparent red over white is (255, 127.5, 127.5), in the full picture and shrunk."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 128
    source = tmp_path / "in" / "class"
    source.mkdir(parents=True)
    (source / "red.png").write_bytes(encoded(pixels))
    make(tmp_path / "in", tmp_path / "out", Encoding(size=8, format="png"))
    data = ShardData(str(tmp_path / "out/train-*.tar"), 8)
    image = data.read(data.order(0, 1).rows(0, 1))[0]["image"][0]
    assert (image[0] == 255).all()
    assert ((image[1:].int() - 127).abs() <= 1).all()


def test_a_clear_border_leaves_no_dark_fringe(tmp_path):
    """White paint on a clear black ground: over white every pixel stays white when shrunk."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[20:44, 20:44] = 255
    raw, _ = Encoding(size=8, format="png")(encoded(pixels))
    (tmp_path / "x.png").write_bytes(raw)
    assert (np.asarray(Picture.open(tmp_path / "x.png")) == 255).all()


def test_a_sidecar_and_a_class_folder_give_captions(tmp_path):
    for name in ("a", "b.c"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(picture(1), "JPEG"))
    (tmp_path / "a.txt").write_text("a hat\n")
    entries = of_folder(tmp_path)
    assert [(entry.key, entry.caption) for entry in entries] == [("a", "a hat"), ("b_c", "")]
    with pytest.raises(ValueError, match=r"1 of 2 pictures have no caption.*b\.c\.jpg.*drop"):
        with_captions(entries, "error")
    assert len(with_captions(entries, "drop")) == 1
    assert len(with_captions(entries, "empty")) == 2
    (tmp_path / "classes/red_fox").mkdir(parents=True)
    (tmp_path / "classes/red_fox/1.png").write_bytes(encoded(picture(1)))
    (tmp_path / "classes/.thumbs").mkdir()  # what a file manager left is no picture of the set
    (tmp_path / "classes/.thumbs/1.png").write_bytes(encoded(picture(1)))
    assert [entry.caption for entry in of_folder(tmp_path / "classes")] == ["red fox"]


def test_keys_are_unique_and_safe():
    keys = keys_of(["a.png", "a.jpg", "b/../c.png", "x.y.z.png", "/etc/passwd.png", "a-2.png"])
    assert len(set(keys)) == len(keys)
    assert not any("." in key or key.startswith("/") for key in keys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "no.png", "text": "x"}', "line 1: 'no.png' does not exist"),
        ('{"file_name": "../x.png", "text": "x"}', "line 1: '../x.png' leads out"),
        ('{"text": "x"}', "line 1: file_name is null"),
        ('{"file_name": "0000.png", "text": NaN}', "line 1: JSON field 'text' holds nan"),
        ("hello", "line 1: unreadable JSON"),
        ("", "names no pictures"),
    ],
)
def test_bad_metadata_is_named_by_its_line(tmp_path, line, message):
    write_folder(tmp_path / "in", ["x"])
    (tmp_path / "in/metadata.jsonl").write_text(line)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        of_folder(tmp_path / "in")


def test_a_folder_without_pictures_or_captions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        of_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    with pytest.raises(ValueError, match=r"write metadata\.jsonl"):
        of_folder(tmp_path)


def test_broken_pictures_are_named_together_and_lose_nothing_that_was_made(tmp_path):
    """Two of nine, in three shards; mended, the same command makes only what they belong to."""
    source = write_folder(tmp_path / "in", [f"number {i}" for i in range(9)])
    make(source, tmp_path / "whole")
    broken = [source / "0003.png", source / "0007.png"]
    good = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    for _ in range(2):  # the second time from what the first has left
        with pytest.raises(ValueError, match=r"^2 of 9 samples cannot be read \|") as refusal:
            make(source, tmp_path / "out")
        for path in broken:
            assert f"{path.name}: cannot be decoded (OSError: image file is trunc" in str(
                refusal.value
            )
        assert not list((tmp_path / "out").glob("*.tar"))
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/.partial").glob("*.tar")}
    assert len(made) == 3
    broken[0].write_bytes(good[0])
    broken[1].write_bytes(good[1])
    make(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    kept = [name for name, at in made.items() if (tmp_path / "out" / name).stat().st_mtime_ns == at]
    assert 1 <= len(kept) < 3


def test_tolerated_losses_are_left_out(tmp_path):
    source = write_folder(tmp_path / "in", [f"number {i}" for i in range(9)], metadata=False)
    for number in range(9):
        (source / f"{number:04d}.txt").write_text(f"number {number}")
    (source / "0003.png").write_bytes(b"<html>")
    (source / "0005.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"set --tolerate 0\.2223 to leave them out") as refusal:
        make(source, tmp_path / "out")
    assert r"0003.png: cannot be decoded (no known kind of picture (starts with b'<html>')" in str(
        refusal.value
    )
    assert "0005.png: 0005.txt: the caption is not UTF-8 (byte 3" in str(refusal.value)
    losses = Losses(tolerate=0.2223)
    assert make(source, tmp_path / "out", losses=losses)["samples"] == {"train": 7}
    assert losses.count == 2
    again = Losses(tolerate=0.2223)  # what is there says the same
    before = contents(tmp_path / "out")
    make(source, tmp_path / "out", losses=again)
    assert (again.count, contents(tmp_path / "out")) == (2, before)


def test_many_losses_are_named_by_the_first_and_a_count():
    losses = Losses()
    for number in range(9):
        losses.add(f"{number}.png", "no picture")
    with pytest.raises(
        ValueError, match=r"^9 of 10 .*0\.png: no .*4\.png: no picture \| and 4 more"
    ):
        losses.refuse(10)


def test_pictures_of_a_folder_are_chosen_by_header_and_fields(tmp_path):
    for number, (shape, score) in enumerate([((16, 16), 7), ((4, 16), 9), ((8, 8), 1)]):
        (tmp_path / f"{number}.png").write_bytes(encoded(np.zeros((*shape, 3), np.uint8)))
        line = {"file_name": f"{number}.png", "text": f"number {number}", "beauty": score}
        with (tmp_path / "metadata.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    for keep, left in [
        (Keep(min_side=8), [0, 2]),
        (Keep(max_aspect=2.0), [0, 2]),
        (Keep(scores={"beauty": 5.0}), [0, 1]),
    ]:
        chosen = of_folder(tmp_path, keep)
        assert [entry.caption for entry in chosen] == [f"number {n}" for n in left]
        assert json.loads(chosen[0].fields)["beauty"] == 7
    with pytest.raises(ValueError, match=r"says no taste of any picture; write it into"):
        of_folder(tmp_path, Keep(scores={"taste": 5.0}))
    with pytest.raises(ValueError, match=r"no picture is left of 3 in .*loosen --min-side"):
        of_folder(tmp_path, Keep(min_side=99))


def test_a_stopped_make_goes_on_where_it_stopped(tmp_path):
    source = write_folder(tmp_path / "in", [f"number {i}" for i in range(12)])
    make(source, tmp_path / "whole")

    class Stopped(BaseException):
        pass

    def stop(done, total):
        if done >= 8:
            raise Stopped

    entries = of_folder(source)
    settings = {"shard_size": 4, "jobs": 1, "command": "ldm shards make", "losses": Losses()}
    with pytest.raises(Stopped):
        make_shards({"train": entries}, tmp_path / "out", Encoding(), progress=stop, **settings)
    assert not list((tmp_path / "out").glob("*.tar"))
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/.partial").glob("*.tar")}
    assert len(written) == 2
    make(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for name, time in written.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == time


def test_a_folder_with_other_shards_is_left_alone(tmp_path):
    source = write_folder(tmp_path / "in", ["a", "b"])
    make(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    make(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    with pytest.raises(ValueError, match="holds other shards"):
        make(source, tmp_path / "out", Encoding(size=8))
    assert contents(tmp_path / "out") == before


def test_whole_combinations_are_held_out_and_their_words_are_not():
    captions = [
        f"{who} {tone} skin tone" for who in ("cook", "judge", "pilot", "singer") for tone in TONES
    ]
    captions += ["red apple"]
    held = held_out(captions, 2, "(light|medium|dark) skin tone")
    assert [c for c, out in zip(captions, held, strict=True) if out] == [
        "judge dark skin tone",
        "singer light skin tone",
    ]


def test_a_word_that_training_would_never_show_is_refused():
    with pytest.raises(ValueError, match="'judge' of the held-out caption 'judge dark tone'"):
        held_out(["cook dark tone", "judge dark tone"], 2, "dark tone")
    with pytest.raises(ValueError, match="matches none of 1 captions"):
        held_out(["cook"], 2, "tone")
    with pytest.raises(ValueError, match="no regular expression"):
        held_out(["cook"], 2, "(")
    with pytest.raises(
        ValueError, match=r"number of pictures only 3: none .*set 2 to 3, or 0 for no val"
    ):
        held_out(["cook", "judge", "pilot"], 20, None)
    with pytest.raises(ValueError, match="groups of --hold-out only 1: none would be held out"):
        held_out(["cook dark tone", "cook light tone"], 2, "dark|light")
    with pytest.raises(ValueError, match="--hold-out-every is 1"):
        held_out(["cook"], 1, None)


def test_the_shipped_emoji_hold_out_combinations():
    train = ShardData("asset:emoji/train-*.tar", 64)
    val = ShardData("asset:emoji/val-*.tar", 64)
    assert (len(train), len(val)) == (3236, 152)
    shown, held = list(train.captions()), list(val.captions())
    assert not set(shown) & set(held)
    assert {w for c in held for w in c.split()} <= {w for c in shown for w in c.split()}
    tones = [re.search(r"([a-z-]+) skin tone", caption).group(1) for caption in held]
    assert {tones.count(tone) for tone in set(tones)} == {30, 31}  # 152 over five tones
    manifest = json.loads((ASSETS / "emoji/manifest.json").read_text())
    for source, index in zip(train.set.sources, train.set.indexes, strict=True):
        assert manifest["shards"][source.base]["sha256"] == index.header.sha256
