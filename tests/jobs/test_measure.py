"""Features and separability of one backbone, as a cluster's job does it."""

import pytest

from data_shards.command import InputError
from jobs import measure


def test_what_all_backbones_share_does_not_hang_on_the_weights_of_the_first(write_experiment, tmp_path):
    backbones = [{"name": "tiny_resnet"}, {"name": "tiny_efficientnet", "initialisation": "random"}]
    file = write_experiment(tmp_path, backbones=backbones, layers=False)
    with pytest.raises(InputError, match="tiny_resnet"):
        measure.main(measure.Measure(file, 0))
    found = {path.name for path in (tmp_path / "runs" / "tiny" / "separability").glob("*.json")}
    assert found == {"pixel-statistics--train.json", "pixel-statistics--resample.json"}
