from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from shard_files import write_shards

CONF = Path(__file__).parents[2] / "conf/data"


@pytest.mark.parametrize("name", ["emoji", "shards", "buckets"])
def test_shipped_data_can_be_built_and_ordered(tmp_path, name):
    write_shards(tmp_path, [6])
    (tmp_path / "val-00000.tar").write_bytes((tmp_path / "train-00000.tar").read_bytes())
    data = OmegaConf.load(CONF / f"{name}.yaml")
    if name != "emoji":
        data.folder = str(tmp_path)
    config = OmegaConf.create({"image_size": 64, "data": data})
    train, val = instantiate(config.data.train), instantiate(config.data.val)
    assert len(train.order(0, 2).rows(0, 2).samples) == 2
    assert len(list(val.captions())) == len(val)
