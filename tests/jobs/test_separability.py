"""When the scores of a features file are computed again, and what of the shard set goes into them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.command import InputError, from_yaml
from data_shards.manifest import ShardSet
from jobs import benchmark, collect, pixels
from jobs.experiment import Experiment
from jobs.separability import separability

UNSEEN = Path(__file__).parents[2] / "data_shards" / "sample" / "unseen"


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """Pixel statistics of 120 images."""
    return pixels.pixel_features(ShardSet.open(UNSEEN), tmp_path_factory.mktemp("features"))


def test_corrected_values_of_a_nuisance_are_not_taken_for_the_old_ones(features, tmp_path):
    wrong = {"camera": np.arange(120.0)}
    out = separability(features, tmp_path / "scores.json", replicates=5, nuisances=wrong)
    old, written = json.loads(out.read_text()), out.stat().st_mtime_ns
    separability(features, out, replicates=5, nuisances={"camera": np.arange(120.0)})
    assert out.stat().st_mtime_ns == written
    right = {"camera": np.random.default_rng(0).permutation(120).astype(float)}
    new = json.loads(separability(features, out, replicates=5, nuisances=right).read_text())
    assert [each["name"] for each in new["confounds"]] == [each["name"] for each in old["confounds"]]
    assert new["confounds"] != old["confounds"]
    assert new["scores"] == old["scores"]


def test_the_null_keeps_videos_whole(features, tmp_path):
    """Other videos, another null of the same scores; a video of several groups is an error."""
    out, single = tmp_path / "scores.json", np.arange(120)
    first = json.loads(separability(features, out, replicates=20, video=single).read_text())
    other = json.loads(separability(features, out, replicates=20, video=single[::-1].copy()).read_text())
    assert other["inputs"] != first["inputs"]
    assert [null["value"] for null in other["nulls"]] == [null["value"] for null in first["nulls"]]
    assert [null["mean"] for null in other["nulls"]] != [null["mean"] for null in first["nulls"]]
    torn = np.where(ShardSet.open(UNSEEN).labels == 0, "real", "fake")
    with pytest.raises(InputError, match="lie in one group"):
        separability(features, out, replicates=20, video=torn)


def test_the_benchmark_hands_on_the_videos_of_the_face_table(tmp_path, write_experiment, monkeypatch):
    experiment = from_yaml(Experiment, write_experiment(tmp_path, replicates=5))
    experiment.data.train = experiment.data.unseen.pop("resample")
    benchmark.measure_pixels(experiment)
    out = collect.separability_file(experiment.folder, pixels.LABEL, "train")
    without = json.loads(out.read_text())
    monkeypatch.setattr(ShardSet, "videos", np.array([f"v{row}" for row in range(120)]))
    benchmark.measure_pixels(experiment)
    named = json.loads(out.read_text())
    assert named["inputs"] != without["inputs"]
    assert named["scores"] == without["scores"]


def test_thumbnails_follow_the_shard_sets(tmp_path, write_experiment):
    experiment = from_yaml(Experiment, write_experiment(tmp_path, show_faces=True))
    experiment.data.unseen = {}
    sizes = {}
    for split, path in (("validation", experiment.data.validation), ("test", experiment.data.test)):
        experiment.data.train = path
        benchmark.draw_thumbnails(experiment)
        out = collect.thumbnail_file(experiment.folder)
        with np.load(out, allow_pickle=False) as drawn:
            sizes[split] = drawn["faces"].shape
            assert drawn["source"].tolist() == [ShardSet.open(path).digest]
    assert sizes == {"validation": (80, 64, 64, 3), "test": (100, 64, 64, 3)}
    written = out.stat().st_mtime_ns
    benchmark.draw_thumbnails(experiment)
    assert out.stat().st_mtime_ns == written
