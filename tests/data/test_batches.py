import itertools
import random

import numpy as np
import pytest
import torch
from shard_files import number_of, picture, write_shards

from ldm.data import ShardData, normalise, training_batches, validation_batches

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on 2 cores


def take(data, count, *, workers=0, world=1, start=0, global_batch=4, seed=5):
    """Keys of the first `count` global batches, the ranks' parts put together."""
    ranks = [
        itertools.islice(
            training_batches(
                data,
                global_batch=global_batch,
                rank=rank,
                world=world,
                start=start,
                seed=seed,
                workers=workers,
            ),
            count,
        )
        for rank in range(world)
    ]
    return [[key for part in parts for key in part["key"]] for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_on_any_ranks_and_workers(shards, world, workers):
    data = ShardData(shards, 16)
    assert take(data, 8, world=world, workers=workers) == take(data, 8)


def test_an_epoch_shows_every_sample_once(shards):
    data = ShardData(shards, 16)
    keys = [key for batch in take(data, 23, global_batch=8) for key in batch]  # eight epochs of 23
    for epoch in range(8):
        assert len(set(keys[epoch * 23 : epoch * 23 + 23])) == 23


@pytest.mark.parametrize(
    ("before", "after"), [((2, 0), (1, 3)), ((1, 0), (4, 1)), ((4, 3), (2, 0))]
)
def test_a_resumed_run_goes_on_as_if_never_stopped(shards, before, after):
    data = ShardData(shards, 16)
    whole = take(data, 20)  # more than three epochs
    for stop in random.Random(str((before, after))).sample(range(1, 20), 4):
        world, workers = before
        first = take(data, stop, world=world, workers=workers)
        world, workers = after
        rest = take(data, 20 - stop, start=4 * stop, world=world, workers=workers)
        assert first + rest == whole


def test_pictures_captions_and_keys_belong_together(shards):
    data = ShardData(shards, 16)
    batches = training_batches(data, global_batch=8, rank=0, world=1, start=0, seed=0, workers=2)
    for batch in itertools.islice(batches, 6):
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (8, 3, 16, 16)
        for image, caption, key in zip(batch["image"], batch["caption"], batch["key"], strict=True):
            number = int(key)
            assert caption == f"number {number}"
            assert number_of(image) == number
            np.testing.assert_array_equal(image.permute(1, 2, 0), picture(number))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_shows_every_sample_once_in_order(shards, world, workers):
    data = ShardData(shards, 16)
    ranks = [
        list(validation_batches(data, batch=3, rank=rank, world=world, workers=workers))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    keys = []
    for parts in zip(*ranks, strict=True):
        assert len({len(part["image"]) for part in parts}) == 1
        for part in parts:
            keys += [key for key, valid in zip(part["key"], part["valid"], strict=True) if valid]
    assert keys == [f"{number:06d}" for number in range(23)]


def test_more_ranks_than_samples_still_see_each_once(tmp_path):
    data = ShardData(write_shards(tmp_path, [3]), 16)
    valid = [
        [
            bool(flag)
            for batch in validation_batches(data, batch=2, rank=rank, world=4, workers=0)
            for flag in batch["valid"]
        ]
        for rank in range(4)
    ]
    assert sum(sum(flags) for flags in valid) == 3
    assert {len(flags) for flags in valid} == {1}


def test_normalise_maps_bytes_to_minus_one_and_one():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    image = normalise(pixels)
    assert image.dtype == torch.float32
    assert (image.min(), image.max()) == (-1, 1)
    torch.testing.assert_close((image + 1) * 127.5, pixels.float())
    assert image.is_contiguous()


def test_a_flip_is_a_function_of_seed_and_position(shards):
    data = ShardData(shards, 16, flip=True)
    flipped = 0
    for batch in itertools.islice(
        training_batches(data, global_batch=8, rank=0, world=1, start=0, seed=0, workers=0), 12
    ):
        for image, key in zip(batch["image"], batch["key"], strict=True):
            truth = torch.from_numpy(picture(int(key))).permute(2, 0, 1)
            turned = not torch.equal(image, truth)
            assert torch.equal(image.flip(-1) if turned else image, truth)
            flipped += turned
    assert 30 <= flipped <= 66  # of 96; five standard deviations at 1/2 are 24

    def images(workers, start):
        batches = training_batches(
            data, global_batch=8, rank=0, world=1, start=start, seed=0, workers=workers
        )
        return torch.cat([batch["image"] for batch in itertools.islice(batches, 3)])

    assert torch.equal(images(2, 0)[8:], images(0, 8)[:16])


def test_what_cannot_be_shared_is_refused(shards):
    data = ShardData(shards, 16)
    with pytest.raises(ValueError, match="multiple of 3"):
        training_batches(data, global_batch=4, rank=0, world=3, start=0, seed=0, workers=0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        training_batches(data, global_batch=4, rank=2, world=2, start=0, seed=0, workers=0)


def test_captions_come_without_pictures(shards):
    data = ShardData(shards, 16)
    assert list(data.captions()) == [f"number {number}" for number in range(23)]
    assert len(data) == 23


def test_the_content_hash_changes_with_the_content_only(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first = ShardData(write_shards(tmp_path / "a", [3, 2]), 16)
    again = ShardData(write_shards(tmp_path / "b", [3, 2]), 8)
    other = ShardData(write_shards(tmp_path / "c", [3, 3]), 16)
    assert first.content_hash == again.content_hash != other.content_hash
