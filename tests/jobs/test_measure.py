"""Features and separability of one backbone, as a cluster's job does it."""

import os
import signal

import pytest

from data_shards.command import InputError
from jobs import measure
from trainer import parts


def test_what_all_backbones_share_does_not_hang_on_the_weights_of_the_first(write_experiment, tmp_path):
    backbones = [{"name": "tiny_resnet"}, {"name": "tiny_efficientnet", "initialisation": "random"}]
    file = write_experiment(tmp_path, backbones=backbones, layers=False)
    with pytest.raises(InputError, match="tiny_resnet"):
        measure.main(measure.Measure(file, 0))
    found = {path.name for path in (tmp_path / "runs" / "tiny" / "separability").glob("*.json")}
    assert found == {"pixel-statistics--train.json", "pixel-statistics--resample.json"}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_request_to_stop_keeps_what_was_computed(write_experiment, tmp_path, monkeypatch, number):
    file = write_experiment(tmp_path, feature_batch_size=20, layers=False)
    kept = []

    def keep(self, values, done, *, now=False):
        kept.append((done, now))
        if done == 60:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(parts.Parts, "keep", keep)
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        measure.main(measure.Measure(file, 1))
    assert stopped.value.code == 85
    assert kept == [(20, False), (40, False), (60, False), (60, True)]
    assert signal.getsignal(number) == handler
