"""mode=head on features that are computed once: the same run as with a backbone pass for every picture, in seconds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_shards.command import InputError
from trainer import inputs
from trainer.distributed import build_accelerator
from trainer.export import export
from trainer.inputs import HeadFeatures, load_head_features
from trainer.loop import Stopped, fit
from trainer.predict import load_run, score
from trainer.state import read_metrics

KEYS = {"mode": "head", "flip": False, "learning_rate": 0.01, "accumulation": 2, "ema": 0.9, "label_smoothing": 0.1}


def timeless(rows):
    varying = ("speed", "memory", "system", "time")
    return [{key: row[key] for key in row if not key.startswith(varying)} for row in rows]


@pytest.mark.parametrize("backbone", ["tiny_vit", "tiny_resnet"])
def test_the_run_is_the_one_with_pictures_up_to_rounding(toy_config, train, tmp_path, backbone):
    """Same order, schedule, selection and record; the published weights hold the whole backbone, to the bit."""
    pictures = toy_config(**KEYS, backbone=backbone, experiment="pictures")
    cached = toy_config(**KEYS, backbone=backbone, experiment="cached", features=tmp_path / "features")
    assert cached.directory.name == pictures.directory.name
    results = [train(config) for config in (pictures, cached)]
    rows = [timeless(read_metrics(config.directory)) for config in (pictures, cached)]
    assert len(rows[0]) == len(rows[1]) > 8
    for row, twin in zip(*rows, strict=True):
        assert row == pytest.approx(twin, rel=1e-4, abs=1e-6)
    for key in ("selected_step", "steps", "parameters", "trainable_parameters", "weights", "data", "num_features"):
        assert results[0][key] == results[1][key]
    for name in ("best", "last"):
        one, other = (load_file(config.directory / f"{name}.safetensors") for config in (pictures, cached))
        assert list(one) == list(other)
        for tensor in one:
            if tensor.startswith("backbone."):
                assert torch.equal(one[tensor], other[tensor])
            else:
                torch.testing.assert_close(one[tensor], other[tensor], rtol=1e-4, atol=1e-6)


def test_stopped_and_resumed_it_ends_bit_equal(toy_config, train, tmp_path):
    keys = {**KEYS, "features": tmp_path / "features"}
    whole, config = toy_config(**keys, experiment="whole"), toy_config(**keys, experiment="stopped")
    train(whole)

    def stop(row):
        (config.directory / "stop").touch()

    with pytest.raises(Stopped):
        train(config, stop)
    with pytest.raises(InputError, match="model is fed was features and is pictures"):
        train(replace(config, features=None))
    train(config)
    assert timeless(read_metrics(config.directory)) == timeless(read_metrics(whole.directory))
    for name in ("best", "last"):
        files = [(run.directory / f"{name}.safetensors").read_bytes() for run in (whole, config)]
        assert files[0] == files[1]


def test_features_in_memory_serve_many_runs_without_a_backbone(toy_config, tiny_cards, toy_sets, tmp_path, monkeypatch):
    """Also those of another seed and rate. Their weights are the head alone, and predict completes them."""
    config = replace(toy_config(**KEYS, cards=tiny_cards, features=tmp_path / "f"), initialisation="pretrained")
    made = load_head_features(config)
    in_memory = HeadFeatures(made.train, made.validation)

    def never(*_, **__):
        raise AssertionError("a backbone was made")

    monkeypatch.setattr("trainer.backbones.create_backbone", never)
    monkeypatch.setattr("trainer.begin.create_backbone", never)
    for seed, rate in ((0, 0.01), (1, 0.003)):
        one = replace(config, seed=seed, learning_rate=rate)
        result = fit(one, build_accelerator(one), features=in_memory)
        assert set(load_file(one.directory / "best.safetensors")) == {"head.weight", "head.bias"}
    monkeypatch.undo()
    logits = score(one.directory, {"validation": toy_sets["validation"]})["validation"]
    import pyarrow.parquet as pq
    from sklearn.metrics import roc_auc_score

    table = pq.read_table(logits)
    expected = roc_auc_score(table["label"], table["logit"])
    assert result["selected"]["validation/auc"] == pytest.approx(expected, abs=1e-12)
    head = load_file(one.directory / "best.safetensors")
    expected = in_memory.validation.features @ head["head.weight"][0].numpy() + head["head.bias"].numpy()
    np.testing.assert_allclose(table["logit"].to_numpy(), expected, atol=1e-5)
    export(one.directory, tmp_path / "out")
    file = one.directory / "result.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "weights": {**told["weights"], "sha256": "0"}}))
    with pytest.raises(InputError, match="has a head for weights 0, and card tiny_vit gives"):
        load_run(one.directory)


def test_features_that_are_not_those_of_the_run_are_named(toy_config, tmp_path):
    config = toy_config(**KEYS, features=tmp_path / "features", experiment="right")
    features = load_head_features(config)
    for wrong, message in (
        ({"seed": 3}, "seed is 0, the run needs 3"),
        ({"precision": "bf16"}, "precision is 'fp32', the run needs 'bf16'"),
        ({"backbone": "tiny_resnet"}, "backbone is 'tiny_vit', the run needs 'tiny_resnet'"),
        ({"features": None}, "features in memory need features=FOLDER in the config"),
    ):
        with pytest.raises(InputError, match=message):
            fit(other := replace(config, **wrong), build_accelerator(other), features=features)
    exchanged = inputs.HeadFeatures(features.validation, features.train)
    with pytest.raises(InputError, match="shards_digest is"):
        fit(config, build_accelerator(config), features=exchanged)


@pytest.mark.parametrize("wrong", [{"flip": True}, {"augmentation": 0.1}, {"mode": "full"}, {"channels_last": True}])
def test_what_would_change_a_feature_is_refused(toy_config, tmp_path, wrong):
    with pytest.raises(InputError, match=f"needs {next(iter(wrong))}="):
        toy_config(**{**KEYS, "ema": None, **wrong}, features=tmp_path)
