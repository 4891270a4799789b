import argparse
import csv
import json
import logging
import os
import re
import resource
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import pytest
from shard_files import encoded, picture, sample, write_folder, write_shards, write_tar

from ldm.commands import shards as command
from ldm.data import (
    DataError,
    Keep,
    Reading,
    ShardData,
    training_batches,
    validation_batches,
)
from ldm.data.cache import Cache
from ldm.data.losses import Losses
from ldm.data.pool import pool
from ldm.data.tables import entries_of


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        logging.getLogger("test").info(args)


@pytest.fixture
def web(tmp_path):
    """A web server over tmp_path/web; gives its address."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def captions_of(data):
    return [
        c
        for b in validation_batches(data, batch=4, rank=0, world=1, workers=0)
        for c in b["caption"]
    ]


@pytest.mark.parametrize("indexed", [False, True])
def test_shards_on_another_machine(tmp_path, web, indexed):
    local = ShardData(write_shards(tmp_path / "web", [3, 2]), 16)
    if not indexed:
        for path in (tmp_path / "web").glob("*.index"):
            path.unlink()
    reading = Reading(cache=str(tmp_path / "cache"), retries=0)
    data = ShardData(web + "/train-{00000..00001}.tar", 16, reading=reading)
    assert captions_of(data) == captions_of(local)
    assert data.content_hash == local.content_hash
    if indexed:  # only what is read is fetched
        other = Reading(cache=str(tmp_path / "other"), retries=0)
        assert len(ShardData(web + "/train-{00000..00001}.tar", 16, reading=other)) == 5
        sizes = [path.stat().st_size for path in (tmp_path / "other/shards").iterdir()]
        assert max(sizes) < 10_000


def test_an_address_that_is_not_there_is_refused_before_training(tmp_path, web):
    reading = Reading(cache=str(tmp_path / "cache"), retries=0)
    with pytest.raises(ValueError, match=r"train-00000\.tar cannot be .*fetched after 1 tries"):
        ShardData(web + "/train-00000.tar", 16, reading=reading)
    assert not list((tmp_path / "cache/shards").glob("*.partial"))


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.bin").write_bytes(bytes(1000))
    cache = Cache(Reading(cache=str(tmp_path / "cache"), cache_gigabytes=2.5e-6))
    paths = []
    for turn, number in enumerate([0, 1, 0, 2, 3]):
        paths.append(cache.fetch(f"file://{tmp_path}/{number}.bin"))
        os.utime(paths[-1], ns=(turn * 10**9, turn * 10**9))
    assert [path.is_file() for path in paths] == [False, False, False, True, True]


def test_what_is_open_stays_readable_when_it_leaves_the_cache(tmp_path):
    write_shards(tmp_path, [3, 3, 3])
    reading = Reading(cache=str(tmp_path / "cache"))
    data = ShardData(f"file://{tmp_path}/train-{{00000..00002}}.tar", 16, reading=reading)
    assert captions_of(data) == [f"number {n}" for n in range(9)]
    for path in (tmp_path / "cache/shards").iterdir():
        path.unlink()
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    assert captions_of(data) == [f"number {n}" for n in range(9)]


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_are_fetched_before_they_are_needed(tmp_path, web, workers):
    """Eight shards, windows of one, batches of one: what lies 3 samples ahead is there already."""
    write_shards(tmp_path / "web", [2] * 8)
    assert len(ShardData(str(tmp_path / "web/*.tar"), 16)) == 16  # writes the indexes

    def fetched(ahead):
        folder = tmp_path / f"cache-{ahead}"
        reading = Reading(cache=str(folder), window=2, ahead=ahead, retries=0)
        data = ShardData(web + "/train-{00000..00007}.tar", 16, reading=reading)
        batches = iter(
            training_batches(
                data, global_batch=1, rank=0, world=1, start=0, seed=0, workers=workers
            )
        )
        first = next(batches)["key"]
        deadline = time.monotonic() + 20
        wanted = {path for p in (0, ahead) for path in data.where(data.order(0, 1).rows(p, 1))}
        names = {Cache(reading).path(name).name for name in wanted}
        while time.monotonic() < deadline:
            here = {path.name for path in (folder / "shards").iterdir() if not path.suffix}
            tars = {Cache(reading).path(source.name).name for source in data.set.sources} & here
            if names <= tars:
                return first, len(tars)
            time.sleep(0.02)
        raise AssertionError("not fetched")

    plain, alone = fetched(0)
    early, more = fetched(3)
    assert plain == early
    assert workers or (alone, more) == (1, 2)
    assert more >= 2


def test_remote_globs_are_expanded(tmp_path):
    local = ShardData(write_shards(tmp_path, [3, 2]), 16)
    reading = Reading(cache=str(tmp_path / "cache"))
    data = ShardData(f"file://{tmp_path}/train-*.tar", 16, reading=reading)
    assert captions_of(data) == captions_of(local)
    with pytest.raises(FileNotFoundError, match="matches nothing"):
        ShardData(f"file://{tmp_path}/no-*.tar", 16, reading=reading)


def fetch(folder, address):
    return str(Cache(Reading(cache=folder, retries=0)).fetch(address))


def test_processes_share_one_fetch(tmp_path):
    """The command counts how often it runs."""
    command = f"pipe:echo run >> {tmp_path}/runs; sleep 0.3; echo contents"
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        paths = list(pool.map(fetch, [str(tmp_path / "cache")] * 4, [command] * 4))
    assert len(set(paths)) == 1
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_pipe_runs_only_when_it_is_allowed(tmp_path):
    write_shards(tmp_path, [2])
    address = f"pipe:cat {tmp_path}/train-00000.tar"
    with pytest.raises(
        ValueError, match=r"would run a shell command; set data\.reading\.pipe=true"
    ):
        ShardData(address, 16)
    reading = Reading(cache=str(tmp_path / "cache"), pipe=True)
    assert captions_of(ShardData(address, 16, reading=reading)) == ["number 0", "number 1"]


def test_a_failing_fetch_is_tried_again(tmp_path):
    """Fails once, then works."""
    command = f"pipe:test -e {tmp_path}/flag || {{ touch {tmp_path}/flag; exit 1; }}; echo contents"
    cache = Cache(Reading(cache=str(tmp_path / "cache"), retries=1))
    assert cache.fetch(command).read_text() == "contents\n"
    with pytest.raises(DataError, match=r"cannot be fetched after 2 tries.*non-zero exit status"):
        cache.fetch("pipe:exit 3")


def test_a_shard_named_twice_is_refused(tmp_path):
    write_shards(tmp_path, [2])
    with pytest.raises(ValueError, match="2 times; name every shard once"):
        ShardData([str(tmp_path / "train-00000.tar"), str(tmp_path / "*.tar")], 16)


def ldm(*words):
    """Runs `ldm shards …`."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["shards", *map(str, words)])
    return args.func(args)


def test_the_command_line_from_folder_to_verified_shards(tmp_path, capsys):
    source = write_folder(tmp_path / "in", [f"number {n}" for n in range(12)])
    assert (
        ldm("make", source, tmp_path / "out", "--size", 8, "--hold-out-every", 4, "--jobs", 1) == 0
    )
    assert ldm("info", tmp_path / "out", "--sheet", tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    assert "9 samples in 1 shards" in said
    assert "characters, 0 empty" in said
    assert "mode       RGB 9" in said
    assert "3 samples in 1 shards" in said
    assert (tmp_path / "sheet.png").is_file()
    assert json.loads((tmp_path / "out/manifest.json").read_text())["command"] == (
        "ldm shards make in out --size 8 --hold-out-every 4"
    )
    assert ldm("verify", tmp_path / "out", "--jobs", 1) == 0
    assert "2 shards, 12 samples, 0 problems" in capsys.readouterr().out


def test_verify_names_planted_faults(tmp_path, capsys):
    members = [m for n in range(6) for m in sample(n, kind="BMP")]
    members += [("bad.jpg", encoded(picture(9), "JPEG", quality=95)[:-200]), ("bad.txt", b"x")]
    members += [("nothing.png", b""), ("latin.png", encoded(picture(8))), ("latin.txt", b"\xe9")]
    path = write_tar(tmp_path / "a-00000.tar", members)
    data = ShardData(str(path), 16, reading=Reading(tolerate=0.9))
    raw = bytearray(path.read_bytes())
    raw[data.set.indexes[0].record(4).offset + 100] ^= 4
    path.write_bytes(raw)
    cut = write_tar(tmp_path / "a-00001.tar", sample(7))
    cut.write_bytes(cut.read_bytes()[:1024])
    assert ldm("verify", tmp_path, "--jobs", 1) == 1
    said = capsys.readouterr().out
    for fault in (
        "000004: other bytes than were indexed",
        "bad: ValueError: Premature end",
        "nothing: 0 bytes",
        "latin: the caption is not UTF-8",
        "a-00001.tar | cut at byte 1024",
    ):
        assert fault in said


def test_shards_of_others_can_be_filtered_and_shrunk(tmp_path):
    """The layout of img2dataset: .jpg, .txt and .json, keys of nine digits."""
    members = []
    for number, score in enumerate([1, 7, 9]):
        key = f"{number:09d}"
        record = {"caption": f"number {number}", "aesthetic": score, "url": "x"}
        members += [
            (f"{key}.jpg", encoded(picture(number, 32), "JPEG")),
            (f"{key}.txt", f"number {number}".encode()),
            (f"{key}.json", json.dumps(record).encode()),
        ]
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/00000.tar", members)
    assert (
        ldm(
            "make",
            tmp_path / "in",
            tmp_path / "out",
            "--size",
            8,
            "--min-score",
            "aesthetic=5",
            "--hold-out-every",
            0,
            "--jobs",
            1,
        )
        == 0
    )
    data = ShardData(str(tmp_path / "out/train-*.tar"), 8, keep=Keep(scores={"aesthetic": 8.0}))
    assert list(data.captions()) == ["number 2"]
    assert data.set.fields(data.set.place(0))["url"] == "x"
    assert data.set.record(data.set.place(0)).width == 8


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_paths_and_captions(tmp_path, kind):
    write_folder(tmp_path, [f"number {n}" for n in range(3)], metadata=False)
    rows = [{"path": f"{n:04d}.png", "caption": f"number {n}"} for n in range(3)]
    table = tmp_path / f"table.{kind}"

    def write(rows):
        if kind == "csv":
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), table)

    write(rows)
    entries = entries_of(str(table), Keep(), Losses()).entries
    assert [(entry.key, entry.caption) for entry in entries] == [
        (f"{n:04d}", f"number {n}") for n in range(3)
    ]
    assert entries[2].read() == (tmp_path / "0002.png").read_bytes()
    write([*rows, {"path": "no.png", "caption": "x"}])
    losses = Losses()
    assert len(entries_of(str(table), Keep(), losses).entries) == 3
    with pytest.raises(ValueError, match=r"1 of 4 .*row 4: 'no\.png' does not exist"):
        losses.refuse(4)
    write([{"where": "0000.png", "caption": "x"}])
    with pytest.raises(ValueError, match="call that of the pictures file_name"):
        entries_of(str(table), Keep(), Losses())


def test_a_hugging_face_data_set_on_disk(tmp_path):
    """The layout that `datasets.save_to_disk` writes: Arrow streams, pictures as structs."""
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"image": {"bytes": encoded(picture(n)), "path": None}, "text": f"number {n}"}
        for n in range(5)
    ]
    table = pyarrow.Table.from_pylist(rows)
    for shard, part in enumerate([table.slice(0, 3), table.slice(3)]):
        path = str(tmp_path / f"data-{shard:05d}-of-00002.arrow")
        with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, part.schema) as out:
            out.write_table(part)
    assert ldm("make", tmp_path, tmp_path / "out", "--hold-out-every", 0, "--jobs", 1) == 0
    data = ShardData(str(tmp_path / "out/train-*.tar"), 16)
    assert sorted(data.captions()) == [f"number {n}" for n in range(5)]


def test_a_picture_that_changed_in_its_shard_is_not_made_into_another(tmp_path):
    """BMP decodes to other pixels without a word."""
    (tmp_path / "in").mkdir()
    members = [m for n in range(4) for m in sample(n, kind="BMP")]
    path = write_tar(tmp_path / "in/a-00000.tar", members)
    record = ShardData(str(path), 16).set.indexes[0].record(2)
    raw = bytearray(path.read_bytes())
    raw[record.offset + 100 : record.offset + 300] = bytes(200)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"1 of 4 .*000002: .*differ from the index's checksum"):
        ldm("make", tmp_path / "in", tmp_path / "out", "--hold-out-every", 0, "--jobs", 1)


def test_folders_whose_names_hold_signs_of_a_pattern(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "birds [1]"
    folder.mkdir()
    write_shards(folder, [2, 3])
    assert len(ShardData(f"{folder}/train-*.tar", 16)) == 5
    assert ldm("info", folder) == 0
    assert "5 samples in 2 shards" in capsys.readouterr().out
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ShardData("~/birds [1]/train-*.tar", 16)) == 5


def test_info_shows_what_there_is_of_a_damaged_shard(tmp_path, capsys):
    write_shards(tmp_path, [4, 4])
    path = tmp_path / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:4000])
    words = ["info", tmp_path, "--sheet", tmp_path / "new/sheet.png"]
    assert ldm(*words) == 0
    assert re.search(r"[56] samples in 2 shards", capsys.readouterr().out)
    assert (tmp_path / "new/sheet.png").is_file()


def test_the_command_says_what_it_left_out(tmp_path, capsys):
    source = write_folder(tmp_path / "in", [f"number {n}" for n in range(12)], metadata=False)
    for number in range(12):
        (source / f"{number:04d}.txt").write_text("" if number < 3 else f"number {number}")
    (source / "0004.png").write_bytes(b"")
    words = ["--hold-out-every", 4, "--jobs", 1, "--missing-caption", "drop"]
    assert ldm("make", source, tmp_path / "out", *words, "--tolerate", 0.2) == 0
    said = capsys.readouterr().out
    assert "left out 3 without a caption" in said
    assert re.search(r"left out 1 unreadable: .*0004\.png: cannot be decoded \(0 bytes\)", said)
    size = ("--min-side", 17, "--tolerate", 0.5)
    (source / "0005.png").write_bytes(encoded(picture(5, 20)))
    (source / "0006.png").write_bytes(encoded(picture(6, 20)))
    assert ldm("make", source, tmp_path / "large", *words[2:], *size, "--hold-out-every", 2) == 0
    assert "left out 9 by --min-side" in capsys.readouterr().out  # and one that is unreadable
    with pytest.raises(ValueError, match=r"20x20 has more pixels than max_pixels = 399"):
        ldm("make", source, tmp_path / "small", *words, "--max-pixels", 399)


def test_odd_folders(tmp_path):
    """A link to nothing, a folder named like a picture, names that are not UTF-8."""
    folder = os.fsencode(tmp_path / "in") + b"/caf\xe9"
    os.makedirs(folder + b"/folder.png")
    for name in (b"\xff a.png", b"b.c.PNG"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(encoded(picture(1)))
    words = ["--hold-out-every", 0, "--jobs", 1]
    assert ldm("make", tmp_path / "in", tmp_path / "out", *words) == 0
    data = ShardData(str(tmp_path / "out/train-*.tar"), 16)
    assert list(data.captions()) == ["caf\N{REPLACEMENT CHARACTER}"] * 2
    os.symlink("/nowhere/at-all", folder + b"/link.png")
    with pytest.raises(ValueError, match=r"link\.png: cannot be read \(No such file or directory"):
        ldm("make", tmp_path / "in", tmp_path / "more", *words)


def test_linked_folders_are_read_and_what_cannot_be_is_named(tmp_path):
    """Classes that lie elsewhere; a link that leads back; a telephone's photograph."""
    classes = tmp_path / "elsewhere/red_fox"
    classes.mkdir(parents=True)
    (classes / "1.png").write_bytes(encoded(picture(1)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/red_fox").symlink_to(classes)
    (classes / "back").symlink_to(tmp_path / "in")
    words = ["--hold-out-every", 0, "--jobs", 1]
    assert ldm("make", tmp_path / "in", tmp_path / "out", *words) == 0
    assert list(ShardData(str(tmp_path / "out/*.tar"), 16).captions()) == ["red fox"]
    (classes / "2.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(
        ValueError, match=r"1 of 2 .*2\.HEIC: \.heic is not read; convert it to JPEG"
    ):
        ldm("make", tmp_path / "in", tmp_path / "more", *words)


def test_a_full_disk_is_named_and_what_was_made_stays(tmp_path):
    """The limit of a file's size stands for the disk: one shard fits, the other does not."""
    source = write_folder(tmp_path / "in", ["small", "large"])
    (source / "0001.png").write_bytes(encoded(picture(1, 200)))
    words = ["make", source, tmp_path / "out", "--hold-out-every", 0, "--shard-size", 1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refusal:
            ldm(*words, "--jobs", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refusal.value.filename == str(tmp_path / "out/.partial")
    left = sorted(path.name for path in (tmp_path / "out/.partial").iterdir())
    assert left in ([], ["train-00000.tar", "train-00000.tar.index"])
    assert ldm(*words, "--jobs", 1) == 0
    assert ldm("verify", tmp_path / "out", "--jobs", 1) == 0


def kill_itself(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_leave_ctrl_c_to_the_command_and_their_death_is_told():
    with pool(2, chunk=1) as run:
        assert list(run(signal.getsignal, [signal.SIGINT])) == [signal.SIG_IGN]
    with pytest.raises(ValueError, match=r"a process died.*lower --jobs"), pool(2, chunk=1) as run:
        list(run(kill_itself, [0]))


def test_a_source_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a \.csv"):
        ldm("make", tmp_path / "no", tmp_path / "out")
    with pytest.raises(ValueError, match="--size is 0"):
        ldm("make", tmp_path, tmp_path / "out", "--size", 0)
    with pytest.raises(ValueError, match="--background 'nocolour' is no colour"):
        ldm("make", tmp_path, tmp_path / "out", "--background", "nocolour")
    with pytest.raises(ValueError, match="--quality 80 changes nothing where pictures are copied"):
        ldm("make", tmp_path, tmp_path / "out", "--quality", 80)
    with pytest.raises(ValueError, match="SRC and DST are both"):
        ldm("make", tmp_path, f"{tmp_path}/../{tmp_path.name}")
    with pytest.raises(ValueError, match="--tolerate is 1; set a share"):
        ldm("make", tmp_path, tmp_path / "out", "--tolerate", 1)
    with pytest.raises(ValueError, match=r"--sheet x\.gif: name a file that ends in \.png"):
        ldm("info", tmp_path, "--sheet", "x.gif")
    (tmp_path / "x.csv").write_bytes(b"path,text\na\0.png,x\n")
    with pytest.raises(ValueError, match=r"x\.csv(, row 1: .* does not exist| is no readable CSV)"):
        ldm("make", tmp_path / "x.csv", tmp_path / "out")
    with pytest.raises(ValueError, match="--min-score 'x'"):
        ldm("make", tmp_path, tmp_path / "out", "--min-score", "x")
