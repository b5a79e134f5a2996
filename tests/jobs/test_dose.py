"""Forged, packed and measured: the dose-response of a tiny backbone on faces of the sample."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from data_shards.command import InputError
from data_shards.forgeries import ForgeConfig, forge_faces
from data_shards.manifest import ShardSet
from data_shards.pack import PackConfig, pack_command
from evaluation import distances
from evaluation.arrays import Compute
from jobs.dose import Dose, dose, read
from tests.jobs.conftest import SAMPLE

FACES = 30


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    """A shard set of thirty faces, each with two forgeries of resampling."""
    folder = tmp_path_factory.mktemp("forged")
    shards = ShardSet.open(SAMPLE / "train")
    index = pd.read_parquet(SAMPLE / "train" / "index.parquet")
    rows = []
    for place in index.index[index.label == "real"][:FACES]:
        row = index.loc[place]
        with open(shards.shard_path(int(row.shard)), "rb") as tar:
            tar.seek(int(row.offset))
            (folder / f"{row.group}.jpg").write_bytes(tar.read(int(row.length)))
        rows.append({"path": f"{row.group}.jpg", "label": "real", "method": "pristine", "group": row.group,
                     "dataset": "sample", "split": "train"})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "faces.csv", index=False)
    table = forge_faces(
        ForgeConfig(str(folder / "faces.csv"), str(folder / "made"), methods=["resample"], severities=[0.5, 1.0])
    )
    pack_command(PackConfig(faces=str(table), out=str(folder / "packed"), workers=1))
    return folder / "packed" / "train"


@pytest.mark.slow
def test_curves_are_written(forged, tmp_path, tiny_cards, capsys):
    config = Dose("tiny_resnet", forged, tmp_path / "dose.json", tmp_path, "random", replicates=30, cards=tiny_cards)
    (curve, *_) = json.loads(dose(config).read_text())["curves"]["resample"]
    assert curve["severities"] == [0, 0.5, 1]
    assert [score["n"] for score in curve["scores"]] == [FACES] * 3
    (again, *_) = read(tmp_path)["tiny_resnet-random"]["resample"]
    assert json.loads(json.dumps(again.to_dict())) == curve
    assert "resample  knn_auc_k5" in capsys.readouterr().out
    assert (tmp_path / "dose.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_pixel_statistics_are_a_control(forged, tmp_path, tiny_cards, capsys, monkeypatch):
    """Of the forged images: resampling blurs, which their statistics tell and an untrained network may not."""
    seen, tiles = set(), distances.tiles

    def spied(features, component, compute):
        seen.add(compute)
        return tiles(features, component, compute)

    monkeypatch.setattr(distances, "tiles", spied)
    options = {"initialisation": "random", "replicates": 30, "cards": tiny_cards, "chunk": 500}
    dose(Dose("pixel statistics", forged, tmp_path / "pixels.json", tmp_path, **options))
    assert seen == {Compute("cpu", 500)}
    found = read(tmp_path)["pixel statistics"]["resample"]  # one control, whatever is said of weights
    assert (found[0].name, found[0].scores[0].n) == ("knn_auc_k5", FACES)
    assert found[0].scores[-1].value > 0.8
    assert found[0].detectable_low <= found[0].detectable
    assert "least severity told: 0.5 [0.5, " in capsys.readouterr().out


def test_a_set_without_severities_is_refused(tmp_path, tiny_cards):
    config = Dose("tiny_resnet", SAMPLE / "train", tmp_path / "dose.json", tmp_path, "random", cards=tiny_cards)
    with pytest.raises(InputError, match="at 2 to 20 severities"):  # the sample's severities differ from face to face
        dose(config)
    assert not config.out.exists()
