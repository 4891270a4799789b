import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from shard_files import encoded, write_shards, write_tar

from ldm.commands.picture_sizes import sizes_in
from ldm.data import (
    BucketedData,
    MixedData,
    ShardData,
    all_pictures,
    normalise,
    training_batches,
    valid_pictures,
    validation_batches,
)
from ldm.data.buckets import shapes_of
from ldm.frozen import latent_statistics
from ldm.models import KLAutoencoder


def take(data, count, *, start=0, world=1, workers=0, global_batch=8):
    ranks = [
        itertools.islice(
            training_batches(
                data,
                global_batch=global_batch,
                rank=rank,
                world=world,
                start=start,
                seed=2,
                workers=workers,
            ),
            count,
        )
        for rank in range(world)
    ]
    return list(zip(*ranks, strict=True))


def keys(batches):
    return [[key for part in parts for key in part["key"]] for parts in batches]


@pytest.fixture
def mixed(tmp_path):
    parts = []
    for name, size in [("a", 10), ("b", 30)]:
        (tmp_path / name).mkdir()
        members = [
            (f"{name}{n:03d}.{kind}", raw)
            for n in range(size)
            for kind, raw in [("png", encoded(np.full((8, 8, 3), n, np.uint8))), ("txt", b"x")]
        ]
        parts.append(ShardData(str(write_tar(tmp_path / name / "x.tar", members)), 8))
    return MixedData(parts, [3.0, 1.0])


def test_a_mixture_keeps_its_proportions_and_each_part_its_epochs(mixed):
    rows = mixed.order(0, 8).rows(0, 10_000).samples
    assert (rows < 10).sum() == 7500  # exact in every cycle of 10,000
    for part in (rows[rows < 10], rows[rows >= 10]):
        size = len(set(part.tolist()))
        assert size == (10 if part[0] < 10 else 30)
        for epoch in range(10):
            assert len(set(part[epoch * size : (epoch + 1) * size].tolist())) == size


def test_a_mixture_is_the_same_from_any_position_and_on_any_ranks(mixed):
    whole = keys(take(mixed, 12))
    assert keys(take(mixed, 12, world=2, workers=1)) == whole
    assert keys(take(mixed, 7, start=40, world=4)) == whole[5:]
    far = mixed.order(2, 8).rows(9_990, 30).samples
    np.testing.assert_array_equal(mixed.order(2, 8).rows(10_003, 10).samples, far[13:23])


def test_a_mixture_can_be_validated(mixed):
    batches = validation_batches(mixed, batch=16, rank=0, world=1, workers=0)
    found = [key for batch in batches for key in batch["key"]]
    assert found == [f"a{n:03d}" for n in range(10)] + [f"b{n:03d}" for n in range(30)]
    for batch in batches:
        for key, image in zip(batch["key"], batch["image"], strict=True):
            assert int(image[0, 0, 0]) == int(key[1:])


def test_weights_that_are_no_shares_are_refused(mixed):
    with pytest.raises(ValueError, match="set each above 0"):
        MixedData(mixed.data, [1.0, 0.0])
    with pytest.raises(ValueError, match="2 data sets have 1 weights"):
        MixedData(mixed.data, [1.0])


SHAPES = [(32, 32), (32, 64), (64, 32), (48, 40), (20, 60)]


@pytest.fixture
def many_shapes(tmp_path):
    """97 pictures of five aspects in three shards; each is filled with its own number."""
    number = 0
    for shard, size in enumerate([40, 7, 50]):
        members = []
        for _ in range(size):
            pixels = np.full((*SHAPES[number * 7 % 5], 3), number, np.uint8)
            members += [(f"{number:06d}.png", encoded(pixels)), (f"{number:06d}.txt", b"x")]
            number += 1
        write_tar(tmp_path / f"{shard}.tar", members)
    return BucketedData(ShardData(str(tmp_path / "*.tar"), 32), multiple=4, max_aspect=3.0)


def test_all_ranks_have_the_same_shape_at_each_step(many_shapes):
    shapes = set()
    for parts in take(many_shapes, 25, world=2, workers=1, global_batch=4):
        assert len({tuple(part["image"].shape) for part in parts}) == 1
        height, width = parts[0]["image"].shape[2:]
        shapes.add((height, width))
        for part in parts:
            originals = part["original"].tolist()
            for key, original, image in zip(part["key"], originals, part["image"], strict=True):
                assert (image == int(key)).all()
                aspect = original[0] / original[1]
                best = min(many_shapes.shapes, key=lambda s: abs(np.log(s[0] / s[1] / aspect)))
                assert best[0] / best[1] == height / width
    assert len(shapes) == 5


def test_an_epoch_of_buckets_leaves_less_than_a_batch_each(many_shapes):
    order = many_shapes.order(0, 4)
    sizes = Counter(many_shapes.buckets.tolist())
    assert order.batches == sum(size // 4 for size in sizes.values())
    dropped = []
    for epoch in range(3):
        first = epoch * order.batches * 4
        shown = [
            s for b in range(order.batches) for s in order.rows(first + 4 * b, 4).samples.tolist()
        ]
        assert len(set(shown)) == len(shown) == order.batches * 4
        dropped.append(frozenset(range(97)) - set(shown))
    assert len(set(dropped)) == 3  # others in each epoch


def test_buckets_are_the_same_from_any_batch_on_any_ranks(many_shapes):
    whole = keys(take(many_shapes, 40))
    for stop, world, workers in [(1, 2, 0), (13, 4, 1), (25, 1, 2)]:
        rest = take(many_shapes, 40 - stop, start=8 * stop, world=world, workers=workers)
        assert keys(rest) == whole[stop:]


def test_buckets_refuse_what_cannot_work(many_shapes):
    with pytest.raises(ValueError, match="larger than every bucket"):
        many_shapes.order(0, 64)
    with pytest.raises(ValueError, match="in the middle of a global batch"):
        many_shapes.order(0, 4).rows(2, 4)
    with pytest.raises(ValueError, match="multiple is 0 and max_aspect 2; set both to 1 or more"):
        BucketedData(many_shapes.data, multiple=0)
    with pytest.raises(ValueError, match=r"lower data\.train\.multiple"):
        BucketedData(many_shapes.data, multiple=256)


def test_bucket_shapes_have_about_one_area():
    shapes = shapes_of(1024, 64, 2.0)
    assert (1024, 1024) in shapes
    assert (832, 1216) in shapes  # one of SDXL's, appendix I of its paper
    for height, width in shapes:
        assert height % 64 == width % 64 == 0
        assert 0.88 * 1024**2 <= height * width <= 1024**2
        assert max(height / width, width / height) <= 2


def test_plain_data_reads_the_shards_of_a_mixture(tmp_path):
    data = ShardData(write_shards(tmp_path, [4]), 16)
    alone = MixedData([data], [1.0])
    assert len(list(alone.captions())) == 4
    assert alone.content_hash != data.content_hash


@pytest.mark.parametrize("world", [1, 3])
def test_every_picture_of_every_bucket_is_validated_once_in_its_shape(many_shapes, world):
    seen, steps = Counter(), []
    for rank in range(world):
        batches = validation_batches(many_shapes, batch=4, rank=rank, world=world, workers=0)
        found = list(batches)
        steps.append([tuple(batch["image"].shape) for batch in found])
        assert len(found) == len(batches)
        for batch in found:
            for key, valid in zip(batch["key"], batch["valid"].tolist(), strict=True):
                seen[int(key)] += valid
                shape = many_shapes.shapes[many_shapes.buckets[int(key)]]
                assert tuple(batch["image"].shape[2:]) == shape
    assert seen == Counter(range(97))
    assert all(shapes == steps[0] for shapes in steps)
    assert len({shape[2:] for shape in steps[0]}) == 5


def test_the_latent_contract_is_measured_in_the_shapes_that_are_trained_on(many_shapes):
    torch.manual_seed(0)
    network = KLAutoencoder(latent_channels=2, width=4, multipliers=(1, 1), blocks=0, groups=2)
    record = latent_statistics(network, valid_pictures(all_pictures(many_shapes, batch=8)))
    vectors, areas = [], {}
    for batch in validation_batches(many_shapes, batch=1, rank=0, world=1, workers=0):
        with torch.no_grad():
            posterior = network.encode(normalise(batch["image"]))
        vectors.append(posterior.mean.transpose(0, 1).flatten(1))
        areas[tuple(batch["image"].shape[2:])] = batch["image"][0, 0].numel()
    assert torch.allclose(torch.tensor(record.mean), torch.cat(vectors, 1).mean(1), atol=1e-5)
    assert record.count == 97
    assert areas[record.smallest] == min(areas.values()) < max(areas.values())
    assert areas[record.largest] == max(areas.values())
    assert set(sizes_in(many_shapes)) == set(areas)
    assert sizes_in(many_shapes.data) == []
