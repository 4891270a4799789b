import pytest
from shard_files import write_shards


@pytest.fixture
def shards(tmp_path):
    """23 samples in four shards of unequal sizes, one of them alone in its shard."""
    return write_shards(tmp_path, [7, 1, 10, 5])
