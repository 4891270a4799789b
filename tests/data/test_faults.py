"""Section 1 of the list of faults: what a user sees when data is broken."""

import io
import itertools
import json
import logging
import os
import re
import signal
import tarfile
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import encoded, number_of, picture, sample, write_shards, write_tar

from ldm.data import DataError, Keep, Reading, ShardData, training_batches, validation_batches
from ldm.data.index import build_index
from ldm.data.order import Rows
from ldm.data.sources import Source
from ldm.data.tar import scan
from ldm.data.verify import verify

SALVAGE = Reading(salvage=True)
DROP = Keep(missing_caption="drop")  # a caption may be cut off its picture


def members_of(count):
    return [member for number in range(count) for member in sample(number)]


def batches(data, count, **options):
    wanted = {"global_batch": 4, "rank": 0, "world": 1, "start": 0, "seed": 0, "workers": 0}
    return list(itertools.islice(training_batches(data, **(wanted | options)), count))


def everything(data):
    """(key, caption, picture) of all samples, in order."""
    found = []
    for batch in validation_batches(data, batch=8, rank=0, world=1, workers=0):
        found += zip(batch["key"], batch["caption"], batch["image"], strict=True)
    return found


def assert_whole(data):
    for key, caption, image in everything(data):
        assert caption == f"number {int(key)}"
        assert number_of(image) == int(key)


def test_a_cut_tar_gives_whole_samples_or_an_error(tmp_path):
    """Rows 1, 2: cut at every block of a shard of six."""
    whole = write_tar(tmp_path / "whole.tar", members_of(6)).read_bytes()
    end = whole.rstrip(b"\0")
    cut = tmp_path / "cut.tar"
    for length in range(512, len(end) + 512, 512):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar is damaged: cut at byte \d+.*salvage=true"):
            ShardData(str(cut), 16)
        if scan(cut).members[1:]:  # one whole sample at least
            assert_whole(ShardData(str(cut), 16, keep=DROP, reading=SALVAGE))


def test_a_cut_tar_with_an_index_says_how_many_are_lost(tmp_path):
    """Rows 1, 2: the index knows what there should be."""
    path = write_tar(tmp_path / "x.tar", members_of(6))
    assert len(ShardData(str(path), 16)) == 6
    whole = path.read_bytes()
    for length in range(3072, len(whole), 2048):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"it was cut or changed, \d of 6 samples are lost"):
            ShardData(str(path), 16)
        data = ShardData(str(path), 16, keep=DROP, reading=SALVAGE)
        assert_whole(data)
        assert len(data) < 6 or length >= len(whole.rstrip(b"\0"))


def test_a_flipped_bit_in_a_header_is_not_the_end_of_the_archive(tmp_path):
    """Row 3: every byte of the second sample's first header."""
    path = write_tar(tmp_path / "x.tar", members_of(3))
    whole = path.read_bytes()
    start = scan(path).members[2].offset - 512
    for byte in range(512):
        broken = bytearray(whole)
        broken[start + byte] ^= 0x10
        path.write_bytes(broken)
        found = scan(path)
        if found.damage is None:  # what pads the checksum's octal digits may change
            assert byte in (148, 154, 155)
            assert len(found.members) == 6
        else:
            assert f"no tar header at byte {start}" in found.damage


def test_a_flipped_bit_in_a_picture_is_found(tmp_path, caplog):
    """Row 4: BMP decodes to other pixels without a word."""
    rows = [(f"{n:06d}.bmp", encoded(picture(n), "BMP")) for n in range(30)]
    captions = [(f"{n:06d}.txt", f"number {n}".encode()) for n in range(30)]
    path = write_tar(tmp_path / "x.tar", rows + captions)
    data = ShardData(str(path), 16)
    broken = bytearray(path.read_bytes())
    broken[data.set.indexes[0].record(3).offset + 400] ^= 1
    path.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        keys = [key for batch in batches(data, 30) for key in batch["key"]]
    assert "000003" not in keys
    assert "x.tar, key 000003" in caplog.text
    assert "checksum" in caplog.text
    assert caplog.text.count("000003") == 1  # named once, in four epochs


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("part", ["picture", "caption", "header", "end"])
def test_verify_and_training_say_the_same_of_a_zeroed_stretch(tmp_path, part, indexed):
    """In the last but one of 20 samples."""
    path = write_tar(tmp_path / "x.tar", [m for n in range(20) for m in sample(n, kind="JPEG")])
    picture, caption = scan(path).members[36:38]
    index = build_index(path)
    if indexed:
        index.write(tmp_path / "x.tar.index")
    raw = bytearray(path.read_bytes())
    start, size = {
        "picture": (picture.offset + picture.size // 2, picture.size // 2),
        "caption": (caption.offset, caption.size),
        "header": (caption.offset - 512, 512),
        "end": (caption.offset, len(raw) - caption.offset),
    }[part]
    raw[start : start + size] = bytes(size)
    path.write_bytes(raw)
    found = verify(Source(str(path), Reading()))
    if (part, indexed) == ("header", False):  # nothing tells what lies behind it
        with pytest.raises(ValueError, match=re.escape(found.problems[0])):
            ShardData(str(path), 16)
        return
    data = ShardData(str(path), 16, reading=Reading(tolerate=0.5))
    rows = np.arange(len(data))
    lost = {fault.key for fault in data.read(Rows(rows, rows, 0))[1]}
    lost |= {example.partition(":")[0] for example in data.set.indexes[0].header.examples}
    assert {key for p in found.problems if (key := p.partition(":")[0]).isdigit()} == lost
    assert found.samples == len(data)
    if indexed:
        hit = {"picture": 1, "caption": 1, "header": 0, "end": 2}[part]
        assert len(lost) == hit
        assert f"training goes by the index and reads {20 - hit} of 20" in found.problems[0]


def test_samples_cannot_cross_shards(tmp_path):
    """Row 5: the next shard starts with the key of the sample that was cut."""
    first = write_tar(tmp_path / "0.tar", members_of(3))
    last = scan(first).members[-1]  # the caption of sample 2
    first.write_bytes(first.read_bytes()[: last.offset - 512])
    write_tar(tmp_path / "1.tar", [("000002.txt", b"of another"), *sample(7)])
    data = ShardData(
        str(tmp_path / "*.tar"),
        16,
        keep=Keep(missing_caption="drop"),
        reading=Reading(salvage=True, tolerate=0.9),
    )
    assert [key for key, _, _ in everything(data)] == ["000000", "000001", "000007"]
    assert_whole(data)


def test_a_missing_shard_is_refused_before_training(tmp_path):
    """Row 6."""
    write_shards(tmp_path, [2, 2])
    with pytest.raises(FileNotFoundError, match=r"train-00002\.tar: no such shard"):
        ShardData(str(tmp_path / "train-{00000..00002}.tar"), 16)
    with pytest.raises(FileNotFoundError, match="matches no file"):
        ShardData(str(tmp_path / "test-*.tar"), 16)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_while_training_is_an_error(tmp_path, workers):
    """Row 6: never a shorter epoch."""
    data = ShardData(write_shards(tmp_path, [4, 4]), 16, reading=Reading(retries=1))
    (tmp_path / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"^shard .*00001\.tar cannot be read .*2 tries.*resume$"):
        batches(data, 10, workers=workers)


@pytest.mark.parametrize(
    ("contents", "message"),
    [(b"", "no tar: 0 bytes"), (b"<html>" + b"404 " * 500, r"no tar header at byte 0.*<html>")],
)
def test_what_is_no_tar_is_refused(tmp_path, contents, message):
    """Row 7."""
    (tmp_path / "x.tar").write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        ShardData(str(tmp_path / "x.tar"), 16)


def test_odd_member_names(tmp_path):
    """Row 8, and names that lead out of a folder."""
    raw, text = encoded(picture(1)), b"number 1"
    good = [("000001.png", raw), ("000001.txt", text), ("./nested/000001.png", raw)]
    good += [("nested/000001.txt", text), ("._000001.png", b"mac"), ("__MACOSX/000001.png", b"mac")]
    good += [
        ("notes.md", b"?"),
        ("dir.with.dots/000001.v1.png", raw),
        ("dir.with.dots/000001.txt", text),
    ]
    bad = [("twice.png", raw), ("twice.png", raw), ("twice.txt", text)]
    bad += [("two.png", raw), ("two.jpg", raw), ("two.txt", text)]
    bad += [("a/../../etc/x.png", raw), ("a/../../etc/x.txt", text)]
    bad += [("/abs.png", raw), ("/abs.txt", text), ("bell\a.png", raw), ("bell\a.txt", text)]
    path = write_tar(tmp_path / "x.tar", good + bad)
    index = build_index(path)
    keys = [index.key(row) for row in range(len(index.records))]
    assert keys == ["000001", "nested/000001", "dir.with.dots/000001"]
    assert index.header.left_out == {"duplicate member": 2, "unsafe member name": 3}
    with pytest.raises(ValueError, match=r"5 of 8 samples are left out.*data\.reading\.tolerate"):
        ShardData(str(path), 16)


def test_links_and_devices_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, raw in sample(5):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    assert_whole(ShardData(str(tmp_path / "x.tar"), 16))
    assert len(scan(tmp_path / "x.tar").ignored) == 4


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("folder", ["", "f" * 90 + "/", "long/" * 60, "ümlaut/"])
def test_members_are_where_tarfile_says(tmp_path, kind, folder):
    if kind == tarfile.USTAR_FORMAT and len(folder) > 150:
        pytest.skip("USTAR holds no such name")
    members = [(folder + name, raw) for n in range(4) for name, raw in sample(n)]
    path = write_tar(tmp_path / "x.tar", members, format=kind)
    with tarfile.open(path) as tar:
        wanted = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(m.name, m.offset, m.size) for m in scan(path).members] == wanted
    assert scan(path).damage is None


def test_tars_that_were_appended_are_not_cut_short(tmp_path):
    one = write_tar(tmp_path / "1.tar", sample(1)).read_bytes()
    two = write_tar(tmp_path / "2.tar", sample(2)).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + two)
    with pytest.raises(ValueError, match="data behind the end mark"):
        ShardData(str(tmp_path / "x.tar"), 16)


def jpegs(folder, count, broken):
    """A shard whose first pictures lose their second half after they were indexed."""
    members = [member for n in range(count) for member in sample(n, kind="JPEG")]
    path = write_tar(folder / "x.tar", members)
    data = ShardData(str(path), 16)
    raw = bytearray(path.read_bytes())
    for number in range(broken):
        record = data.set.indexes[0].record(number)
        raw[record.offset + record.size // 2 : record.offset + record.size] = bytes(
            record.size - record.size // 2
        )
    path.write_bytes(raw)
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_replaced_by_position(tmp_path, workers):
    """Row 9: order and counts stay exact, and the same on any number of ranks and workers."""
    data = jpegs(tmp_path, 200, broken=2)
    keys = [batch["key"] for batch in batches(data, 50, workers=workers)]
    wanted = data.order(0, 4).rows(0, 200).samples
    differ = [
        number
        for number, (key, sample) in enumerate(zip(itertools.chain(*keys), wanted, strict=True))
        if int(key) != sample
    ]
    assert sorted(wanted[differ]) == [0, 1]
    again = [batches(data, 50, rank=rank, world=2) for rank in range(2)]
    assert keys == [one["key"] + two["key"] for one, two in zip(*again, strict=True)]


def test_too_many_broken_pictures_end_the_training(tmp_path):
    """Row 9: 10 of 200 are more than one in a hundred."""
    data = jpegs(tmp_path, 200, broken=10)
    with pytest.raises(DataError, match=r"unreadable, more than data\.reading\.tolerate = 0\.01"):
        batches(data, 250)


def test_a_broken_file_is_left_out_of_the_index(tmp_path):
    """Row 10: zero bytes, and a page of HTML under a picture's name."""
    members = members_of(300)
    members += [("a.jpg", b""), ("a.txt", b"x"), ("b.jpg", b"<html>no</html>"), ("b.txt", b"x")]
    data = ShardData(str(write_tar(tmp_path / "x.tar", members)), 16)
    header = data.set.indexes[0].header
    assert header.left_out == {"unreadable picture": 2}
    assert "a: 0 bytes" in header.examples
    assert "<html>" in header.examples[1]
    assert len(data) == 300


def test_too_many_broken_files_are_refused_before_training(tmp_path):
    members = [*members_of(5), ("a.jpg", b""), ("a.txt", b"x")]
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=r"1 of 6 samples are left out \(1 unreadable picture\)"):
        ShardData(str(path), 16)
    assert len(ShardData(str(path), 16, reading=Reading(tolerate=0.2))) == 5


def test_small_long_and_huge_pictures_can_be_left_out(tmp_path):
    """Rows 12, 13: from the header alone."""
    members = [*sample(0, 16)]
    for name, shape in [("tiny", (1, 1)), ("long", (4, 400)), ("huge", (3000, 3000))]:
        pixels = np.zeros((*shape, 3), np.uint8)
        members += [(f"{name}.png", encoded(pixels)), (f"{name}.txt", b"x")]
    path = str(write_tar(tmp_path / "x.tar", members))
    assert len(ShardData(path, 16)) == 4
    for keep, left in [
        (Keep(min_side=2), {"000000", "long", "huge"}),
        (Keep(max_aspect=2.0), {"000000", "tiny", "huge"}),
        (Keep(max_pixels=8_000_000), {"000000", "tiny", "long"}),
    ]:
        data = ShardData(path, 16, keep=keep)
        assert {key for key, _, _ in everything(data)} == left


@pytest.mark.parametrize("policy", ["error", "drop", "empty"])
def test_a_missing_caption(tmp_path, policy):
    """Row 14."""
    members = [*members_of(3), ("a.png", encoded(picture(9))), *sample(4, caption="  ")]
    path = str(write_tar(tmp_path / "x.tar", members))
    if policy == "error":
        with pytest.raises(ValueError, match=r"^2 samples of .*x\.tar have no caption \(key a is"):
            ShardData(path, 16)
        return
    data = ShardData(path, 16, keep=Keep(missing_caption=policy))
    captions = list(data.captions())
    assert captions == [f"number {n}" for n in range(3)] + ["", ""] * (policy == "empty")


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"caf\xc3\xa9", "café"),
        (b"\xef\xbb\xbfmark", "mark"),
        (b"a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        (b"\0\0", None),
        (b"caf\xe9", None),
        (b"\xed\xa0\x80", None),
    ],
)
def test_captions_are_strict_utf8(tmp_path, raw, wanted):
    """Row 15."""
    members = [("a.png", encoded(picture(9))), ("a.txt", raw), *sample(1)]
    path = str(write_tar(tmp_path / "x.tar", members))
    data = ShardData(path, 16, reading=Reading(tolerate=0.9))
    captions = dict(zip([key for key, _, _ in everything(data)], data.captions(), strict=True))
    assert captions.get("a") == wanted
    header = data.set.indexes[0].header
    assert header.left_out.get("unreadable caption", 0) == (wanted is None)
    assert header.mended == (wanted == "a\N{REPLACEMENT CHARACTER}b")  # replaced, and counted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"caption": "red \\ud800 hat"}', "red \N{REPLACEMENT CHARACTER} hat"),
        (b'{"caption": NaN}', None),
        (b'{"caption": ', None),
        (b"[1]", None),
        (b'{"caption": null, "text": "hat"}', "hat"),
    ],
)
def test_captions_in_json(tmp_path, raw, wanted):
    """Row 15."""
    members = [("a.png", encoded(picture(9))), ("a.json", raw), *sample(1)]
    data = ShardData(str(write_tar(tmp_path / "x.tar", members)), 16, reading=Reading(tolerate=0.9))
    captions = dict(zip([key for key, _, _ in everything(data)], data.captions(), strict=True))
    assert captions.get("a") == wanted


def test_one_shard_feeds_any_number_of_ranks_and_workers(tmp_path):
    """Row 17."""
    data = ShardData(write_shards(tmp_path, [8]), 16)
    keys = [batches(data, 2, rank=rank, world=2, workers=2) for rank in range(2)]
    assert len({key for rank in keys for batch in rank for key in batch["key"]}) == 8


def test_ranks_read_different_samples(tmp_path):
    """Rows 18, 19: equal counts and no overlap, by construction."""
    data = ShardData(write_shards(tmp_path, [3, 9, 4]), 16)
    first, second = (batches(data, 5, rank=rank, world=2) for rank in range(2))
    assert [len(b["key"]) for b in first] == [len(b["key"]) for b in second]
    epoch = [key for one, two in zip(first, second, strict=True) for key in one["key"] + two["key"]]
    assert len(set(epoch[:16])) == 16


class Stuck(ShardData):
    """Storage that never answers."""

    def read(self, rows):
        time.sleep(60)


class Dying(ShardData):
    """A worker that the kernel kills."""

    def read(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)


def test_stuck_storage_is_an_error_that_names_the_shard(tmp_path):
    """Row 20."""
    data = Stuck(write_shards(tmp_path, [4]), 16, reading=Reading(timeout=1.0))
    with pytest.raises(DataError, match=r"^no batch for 1 s \| reading .*train-00000\.tar"):
        batches(data, 1, workers=1)


def test_a_killed_worker_is_an_error_that_hints_at_memory(tmp_path):
    """Row 20."""
    data = Dying(write_shards(tmp_path, [4]), 16)
    with pytest.raises(DataError, match=r"^a data worker died .*train-00000\.tar.*memory"):
        batches(data, 1, workers=1)


def test_another_data_set_has_another_hash(tmp_path):
    """Row 21: training compares this with the checkpoint's."""
    shards = write_shards(tmp_path, [3, 3])
    before = ShardData(shards, 16).content_hash
    assert ShardData(shards, 16).content_hash == before
    write_tar(tmp_path / "train-00002.tar", sample(9))
    assert ShardData(shards, 16).content_hash != before
    kept = ShardData(str(tmp_path / "train-0000[01].tar"), 16, keep=Keep(max_aspect=1.0))
    assert kept.content_hash == before


def test_an_index_of_another_format_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", sample(1))
    ShardData(str(path), 16)
    index = tmp_path / "x.tar.index"
    line, _, rest = index.read_bytes().partition(b"\n")
    old = json.loads(line) | {"format": 0}
    index.write_bytes(json.dumps(old).encode() + b"\n" + rest)
    with pytest.raises(ValueError, match=r"x\.tar\.index is no index of format 2.*delete it"):
        ShardData(str(path), 16)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_no_damage_ever_mixes_samples(tmp_path, data):
    """Bytes changed, zeroed, or the rest cut off: an error, or samples that belong together."""
    path = tmp_path / "x.tar"
    raw = bytearray(write_tar(path, members_of(4)).read_bytes())
    kinds = data.draw(st.lists(st.sampled_from(["change", "cut", "zero"]), min_size=1, max_size=3))
    for kind in kinds:
        start = data.draw(st.integers(1, len(raw) - 1))
        size = data.draw(st.sampled_from([1, 3, 511, 512, 1024, 2048]))
        if kind == "change":
            raw[start] ^= data.draw(st.integers(1, 255))
        elif kind == "zero":
            raw[start : start + size] = bytes(len(raw[start : start + size]))
        else:
            del raw[start + 1 :]
    path.write_bytes(raw)
    (tmp_path / "x.tar.index").unlink(missing_ok=True)
    try:
        kept = Keep(missing_caption="drop")
        reading = Reading(salvage=True, tolerate=0.99)
        found = everything(ShardData(str(path), 16, keep=kept, reading=reading))
    except (ValueError, DataError):
        return
    for key, caption, image in found:
        assert number_of(image) == int(key)
        if "change" not in kinds and "\N{REPLACEMENT CHARACTER}" not in caption:
            assert caption == f"number {int(key)}"
