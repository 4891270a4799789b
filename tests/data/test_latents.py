import itertools

import numpy as np
import pytest
import torch
from shard_files import write_tar
from webdataset.tariterators import tar_file_iterator

from ldm.data import LatentData, ShardData, training_batches
from ldm.data.encoding import LatentFolder
from ldm.data.latents import Layout, condition_of, pack, posterior_of
from ldm.types import Condition, Posterior

MADE_BY = {"first_stage": "f" * 8, "text": "t" * 8}
NULL = 500  # stands for the empty caption
LAYOUT = Layout(4, 2, 3, views=2, tokens=5, token_width=6, pooled_width=7)


def moments(number, layout=LAYOUT):
    """What a made-up first stage says of picture `number`: exact in half precision."""
    shape = (1, layout.channels, layout.height, layout.width)
    rng = np.random.default_rng(number)
    mean = torch.from_numpy(rng.integers(-512, 512, shape)).float() / 64
    return Posterior(mean, torch.full(shape, 0.5))


def text(number, layout=LAYOUT):
    rng = np.random.default_rng(1000 + number)
    tokens = torch.from_numpy(rng.integers(-99, 99, (1, layout.tokens, layout.token_width))).float()
    mask = torch.arange(layout.tokens)[None] <= number % max(layout.tokens, 1)
    pooled = torch.from_numpy(rng.integers(-99, 99, (1, layout.pooled_width))).float()
    return Condition(tokens, mask, pooled)


def mirrored(posterior):
    return Posterior(posterior.mean.flip(-1), posterior.std.flip(-1))


def encode(data, folder, *, layout=LAYOUT, made_by=MADE_BY, rank=0, world=1):
    """What `ldm encode` does, with made-up networks."""
    null = text(NULL, layout) if layout.has_text else None
    target = LatentFolder(folder, "train", layout, made_by, null)
    captions = list(data.captions())
    for path, samples in target.pending(data.set.sizes, rank, world):
        with target.shard(path) as shard:
            for sample in samples:
                key = data.set.key(data.set.place(sample))
                views = [moments(sample, layout), mirrored(moments(sample, layout))]
                shard.add(
                    [key],
                    [captions[sample]],
                    views[: layout.views],
                    text(sample, layout) if layout.has_text else None,
                )


@pytest.fixture
def pictures(shards):
    return ShardData(shards, 16)


def batches_of(data, count, **options):
    settings = {"global_batch": 4, "rank": 0, "world": 1, "start": 0, "seed": 3, "workers": 0}
    return itertools.islice(training_batches(data, **(settings | options)), count)


def test_what_is_read_is_what_was_written(pictures, tmp_path):
    encode(pictures, tmp_path / "latents")
    data = LatentData(str(tmp_path / "latents/train-*.tar"), expect=MADE_BY)
    assert len(data) == 23
    assert list(data.captions()) == list(pictures.captions())
    null = data.null_text()
    assert torch.equal(null.tokens, text(NULL).tokens)
    assert torch.equal(null.mask, text(NULL).mask)
    assert torch.equal(null.pooled, text(NULL).pooled)
    for batch in batches_of(data, 12, workers=1):
        posterior, condition = posterior_of(batch), condition_of(batch)
        for row, key in enumerate(batch["key"]):
            wanted, said = moments(int(key)), text(int(key))
            torch.testing.assert_close(posterior.mean[row], wanted.mean[0], rtol=0, atol=0)
            torch.testing.assert_close(posterior.std[row], wanted.std[0], rtol=1e-3, atol=0)
            assert torch.equal(condition.tokens[row], said.tokens[0])
            assert torch.equal(condition.mask[row], said.mask[0])
            assert torch.equal(condition.pooled[row], said.pooled[0])


def test_latents_come_in_the_order_and_with_the_flips_of_their_pictures(pictures, tmp_path, shards):
    encode(pictures, tmp_path / "latents")
    flipping = ShardData(shards, 16, flip=True)
    latents = LatentData(str(tmp_path / "latents/train-*.tar"), flip=True)
    mirrors = 0
    for one, other in zip(batches_of(flipping, 12), batches_of(latents, 12), strict=True):
        assert one["key"] == other["key"]
        plain = pictures.read  # the same picture, never flipped
        for row, key in enumerate(one["key"]):
            sample = int(key)
            rows = pictures.order(0, 1).rows(0, 1)
            rows = type(rows)(np.array([sample]), np.array([sample]), 0)
            turned = not torch.equal(plain(rows)[0]["image"][0], one["image"][row])
            wanted = mirrored(moments(sample)) if turned else moments(sample)
            assert torch.equal(other["mean"][row].float(), wanted.mean[0])
            mirrors += turned
    assert 10 < mirrors < 38


def test_ranks_share_the_work_and_a_stopped_encoding_goes_on(pictures, tmp_path):
    encode(pictures, tmp_path / "one")
    encode(pictures, tmp_path / "two", rank=1, world=2)
    assert len(list((tmp_path / "two").glob("*.tar"))) == 2  # of four
    target = LatentFolder(tmp_path / "two", "train", LAYOUT, MADE_BY, text(NULL))
    with (
        pytest.raises(RuntimeError, match="killed"),
        target.shard(tmp_path / "two/train-00000.tar"),
    ):
        raise RuntimeError("killed")
    assert len(list((tmp_path / "two").iterdir())) == 4
    encode(pictures, tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_latents_of_another_network_are_refused(pictures, tmp_path):
    encode(pictures, tmp_path / "latents")
    shards = str(tmp_path / "latents/train-*.tar")
    with pytest.raises(
        ValueError, match=r"first_stage ffffffff, this run uses other; run `ldm enc"
    ):
        LatentData(shards, expect={"first_stage": "other"})
    with pytest.raises(ValueError, match="choose another folder"):
        encode(pictures, tmp_path / "latents", made_by={"first_stage": "other"})


def test_captions_travel_where_text_states_do_not(pictures, tmp_path):
    encode(pictures, tmp_path / "latents", layout=Layout(4, 2, 3))
    data = LatentData(str(tmp_path / "latents/train-*.tar"))
    batch = next(iter(batches_of(data, 1)))
    assert batch["caption"] == [f"number {int(key)}" for key in batch["key"]]
    assert condition_of(batch) is None
    with pytest.raises(ValueError, match=r"no mirror images.*ldm encode --flip"):
        LatentData(str(tmp_path / "latents/train-*.tar"), flip=True)


def test_class_labels_are_text_without_tokens(pictures, tmp_path):
    layout = Layout(4, 2, 3, pooled_width=7)
    encode(pictures, tmp_path / "latents", layout=layout)
    data = LatentData(str(tmp_path / "latents/train-*.tar"))
    batch = next(iter(batches_of(data, 1)))
    condition = condition_of(batch)
    assert condition.tokens.shape == (4, 0, 0)
    for row, key in enumerate(batch["key"]):
        assert torch.equal(condition.pooled[row], text(int(key), layout).pooled[0])
    with pytest.raises(ValueError, match="text states go with those of the empty caption"):
        LatentFolder(tmp_path, "train", layout, {})


def test_a_record_of_another_size_is_replaced(pictures, tmp_path):
    """FAULTS.md, row 16: a shape that does not fit, written by others."""
    encode(pictures, tmp_path / "latents", layout=Layout(4, 2, 3))
    path = tmp_path / "latents/train-00000.tar"
    with path.open("rb") as file:
        members = [(member["fname"], member["data"]) for member in tar_file_iterator(file)]
    members[1] = (members[1][0], members[1][1][:-2])
    write_tar(path, members)
    path.with_name(path.name + ".index").unlink()
    data = LatentData(str(tmp_path / "latents/train-*.tar"))
    batch, faults = data.read(data.order(0, 1).rows(0, 23))
    assert [(fault.key, fault.reason) for fault in faults] == [
        ("000000", "94 bytes, a record has 96")
    ]
    for row, key in enumerate(batch["key"]):
        assert key != "000000"
        assert torch.equal(batch["mean"][row].float(), moments(int(key)).mean[0])


def test_pictures_are_no_latents(shards):
    with pytest.raises(ValueError, match="holds no latents"):
        LatentData(shards)


def test_a_deterministic_encoder_keeps_its_zero_variance(tmp_path):
    layout = Layout(1, 1, 1)
    zero = Posterior(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    target = LatentFolder(tmp_path, "train", layout, {})
    with target.shard(tmp_path / "train-00000.tar") as shard:
        shard.add(["a"], ["x"], [zero])
    data = LatentData(str(tmp_path / "train-00000.tar"))
    posterior = posterior_of(next(iter(batches_of(data, 1, global_batch=1))))
    assert torch.equal(posterior.std, zero.std)
    assert torch.equal(posterior.mean, zero.mean)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_is_not_finite_is_refused_when_it_is_written(value):
    layout = Layout(1, 1, 2)
    mean = torch.zeros(2, 1, 1, 2)
    mean[1, 0, 0, 1] = value
    with pytest.raises(ValueError, match="the mean of b is not finite"):
        pack(layout, [Posterior(mean, torch.ones_like(mean))], None, ["a", "b"])
    with pytest.raises(ValueError, match=r"shaped \[2, 1, 1, 2\].*laid out for \[2, 1, 2, 2\]"):
        pack(Layout(1, 2, 2), [Posterior(mean, torch.ones_like(mean))], None, ["a", "b"])


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_what_is_not_finite_is_replaced_when_it_is_read(pictures, tmp_path, bits):
    """Infinity, minus infinity and NaN in half precision, written by others."""
    encode(pictures, tmp_path / "latents", layout=Layout(4, 2, 3))
    path = tmp_path / "latents/train-00000.tar"
    with path.open("rb") as file:
        members = [
            (member["fname"], bytearray(member["data"])) for member in tar_file_iterator(file)
        ]
    members[1][1][10:12] = bits.to_bytes(2, "little")
    write_tar(path, [(name, bytes(raw)) for name, raw in members])
    path.with_name(path.name + ".index").unlink()
    data = LatentData(str(tmp_path / "latents/train-*.tar"))
    rows = data.order(0, 1).rows(0, 23)
    batch, faults = data.read(rows)
    assert [fault.key for fault in faults] == ["000000"]
    assert torch.isfinite(batch["mean"]).all()
    assert batch["key"] != [f"{n:06d}" for n in rows.samples]
