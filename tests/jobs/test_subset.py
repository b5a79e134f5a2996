"""Training sets of a sweep with fewer groups or wrong labels."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.command import InputError
from data_shards.manifest import ShardSet
from data_shards.reader import SampleReader
from data_shards.splits import components
from jobs.subset import TRUE_LABEL, Subset, _extract, flipped, kept, take

TRAIN = Path(__file__).parents[2] / "data_shards" / "sample" / "train"


def test_smaller_subsets_lie_in_larger_ones_and_groups_stay_whole():
    shards = ShardSet.open(TRAIN)
    component = components(shards.column("group"))
    small, large = kept(shards, 10), kept(shards, 20)
    assert set(small) < set(large)
    assert len(set(component[small])) == 10
    assert set(np.flatnonzero(np.isin(component, component[small]))) == set(small)
    assert np.array_equal(kept(shards, None), np.arange(len(shards)))
    with pytest.raises(InputError, match="ask for fewer"):
        kept(shards, 10_000)


def test_the_packed_subset_has_the_images_and_the_wrong_labels(tmp_path, monkeypatch):
    shards, subset = ShardSet.open(TRAIN), Subset(train_groups=12, flipped_labels=0.25)
    path = take(subset, TRAIN, tmp_path)
    assert path == subset.path(tmp_path, TRAIN)
    packed, rows = ShardSet.open(path), kept(shards, 12)
    assert len(packed) == len(rows)
    wrong = packed.column("label") != packed.column(TRUE_LABEL)
    assert wrong.sum() == round(0.25 * len(rows)) == flipped(shards, rows, 0.25).sum()
    # Image bytes, true labels and groups are those of the samples that the names tell.
    source = np.array([int(name.split(".")[0]) for name in packed.column("path")])
    assert sorted(source) == sorted(rows)
    assert (shards.column("label")[source] == packed.column(TRUE_LABEL)).all()
    assert (shards.column("sha256")[source] == packed.column("sha256")).all()
    assert (shards.column("group")[source] == packed.column("group")).all()
    assert SampleReader(packed, image_size=8).read(0) == SampleReader(shards, image_size=8).read(int(source[0]))
    before = (path / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr("jobs.subset._extract", None)  # no image is touched again
    assert take(subset, TRAIN, tmp_path) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    (path.parent / "source.json").unlink()  # of an earlier version, or of another training set
    with pytest.raises(TypeError):
        take(subset, TRAIN, tmp_path)


def test_the_images_wait_beside_the_subset_not_in_tmp(tmp_path, monkeypatch):
    places = []

    def record(shards, rows, names, folder):
        places.append(folder)
        _extract(shards, rows, names, folder)

    monkeypatch.setattr("jobs.subset._extract", record)
    take(Subset(train_groups=4), TRAIN, tmp_path / "data")
    assert [place.parent for place in places] == [tmp_path / "data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train-groups-4-flipped-0"]


def test_the_whole_set_is_itself(tmp_path):
    assert take(Subset(), TRAIN, tmp_path) == TRAIN
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"train_groups": 0}, {"train_groups": 2.5}, {"flipped_labels": 1}])
def test_mistakes_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Subset(**wrong)


def test_only_training_sets_are_cut(tmp_path):
    with pytest.raises(InputError, match="is a test set"):
        take(Subset(train_groups=2), TRAIN.parent / "test", tmp_path)
