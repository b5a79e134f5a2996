"""What lies on disk becomes tables: separability of real and of made-up backbones, without any fine-tuning."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyarrow import parquet

from data_shards.command import from_yaml, write_yaml
from data_shards.files import write_json
from data_shards.manifest import ShardSet
from evaluation import distances
from evaluation.arrays import Compute
from evaluation.panel import Panel
from evaluation.score import Score
from jobs import benchmark, collect, pixels, plan, relation, separability
from jobs.experiment import Experiment
from trainer.features import read_features

NAMES = ["dinov2_vits14", "augnet_resnet50", "imagenet_mobilenetv2", "imagenet_efficientnet_lite0", "edgeface_s"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, write_experiment) -> Experiment:
    """A tiny backbone and the pixel statistics, on the smallest set of the sample (120 images) alone."""
    folder = tmp_path_factory.mktemp("measured")
    experiment = from_yaml(Experiment, write_experiment(folder, replicates=20, chunk=1500))
    experiment.data.train = experiment.data.unseen.pop("resample")
    tiles, seen = distances.tiles, []

    def spied(features, component, compute):
        seen.append(compute)
        return tiles(features, component, compute)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "tiles", spied)
        benchmark.measure(experiment, experiment.backbones[0])
        benchmark.measure_pixels(experiment)
    assert set(seen) == {Compute("cpu", 1500)}  # of the panels, and of each layer
    return experiment


def test_pixel_statistics_are_a_control_without_runs(measured):
    first, second, control = collect.backbone_results(measured)
    assert (control.name, control.family, control.is_control) == ("pixel statistics", "control", True)
    assert list(control.separability) == list(first.separability) == ["train"]
    assert control.missing == []
    assert (control.num_features, control.parameters) == (38, 0)
    assert "separability on train" in second.missing  # the other backbone was not measured
    (layer,) = control.layers["train"]  # beside the layers of the networks: its only one
    assert layer == control.separability["train"][0]
    # The fakes of this set are resampled images, which sharpness gives away.
    assert control.separability["train"][0].value > 0.9


def test_pixel_features_are_a_features_file_of_the_shards(measured):
    shards = ShardSet.open(measured.data.train)
    path = pixels.pixel_features(shards, measured.runs / "features")
    written = path.stat().st_mtime_ns
    assert pixels.pixel_features(shards, measured.runs / "features").stat().st_mtime_ns == written
    found = read_features(path)
    assert found.features.shape == (120, 38)
    assert np.array_equal(found.label, shards.labels)
    assert list(found.group) == list(shards.column("group"))


def test_pictures_know_the_group_and_the_fine_tuned_score_of_each_sample(measured, tmp_path):
    (picture,) = collect.backbone_results(measured)[0].embeddings.values()
    shards = ShardSet.open(measured.data.train)
    assert list(picture["group"]) == list(shards.column("group"))
    assert "score" not in picture  # nothing was fine-tuned
    runs = [SimpleNamespace(run=tmp_path / "first"), SimpleNamespace(run=tmp_path / "second")]
    for row, logit in zip(runs, (0.0, np.log(3)), strict=True):  # probabilities of 1/2 and 3/4
        (row.run / "scores").mkdir(parents=True)
        table = pa.table({"index": np.arange(120)[::-1], "logit": np.where(np.arange(120) == 119, logit, 0)})
        parquet.write_table(table, row.run / "scores" / "train.parquet")
    (picture,) = collect._embeddings(measured, measured.backbones[0].label, runs).values()
    assert picture["score"][:2] == pytest.approx([(0.5 + 0.75) / 2, 0.5])  # sample 0 stands last in the file


def test_scores_have_all_that_qualifies_them(measured):
    panel = collect.backbone_results(measured)[0].panels["train"]
    assert len(panel.draws) == 20
    assert panel.null(panel.scores[0].name).permutations == 20
    assert set(panel.by_treatment) == {"centred", "unit length", "standardised", "whitened"}
    assert panel.transferability


def test_an_earlier_version_is_missing_and_made_again(measured, tmp_path):
    features = next((measured.runs / "features").glob("pixel-statistics--*"))
    out = separability.separability(features, tmp_path / "scores.json", replicates=5)
    done = out.stat().st_mtime_ns
    assert separability.separability(features, out, replicates=5).stat().st_mtime_ns == done
    values = json.loads(out.read_text())
    assert separability.read(out)[1]
    write_json(out, {**values, "schema": separability.SCHEMA - 1})  # other scores, the same form: shown, and renewed
    panel, current = separability.read(out)
    assert (panel.scores[0].value, current) == (values["scores"][0]["value"], False)
    write_json(out, {key: values[key] for key in ("features", "scores")} | {"inputs": "of the first version"})
    assert separability.read(out) == (None, False)
    separability.separability(features, out, replicates=5)
    assert json.loads(out.read_text()) == values


def score(name: str, value: float) -> Score:
    return Score(name, value, value - 0.03, value + 0.03, True, 100, "made up")


def make_up(experiment: Experiment) -> list[plan.Row]:
    """Results of five backbones in one order: the later in the list, the less separable and the worse."""
    rows = plan.make(experiment)
    for place, row in enumerate(rows):
        level = 0.8 - 0.05 * place
        draws = np.random.default_rng(0).normal(level, 0.02 + 0.001 * place, 30).tolist()
        panel = Panel([score("knn_auc_k20", level), score("silhouette", level / 4)], draws=draws)
        for data in experiment.separability_sets:
            path = collect.separability_file(experiment.folder, row.backbone, data)
            extra = {"schema": separability.SCHEMA, "inputs": "", "parameters": 10**6 + place, "num_features": 8}
            write_json(path, {**extra, **panel.to_dict()})
        detection = {name: [score("auc", level + 0.1).to_dict()] for name in experiment.data.by_name()}
        gaps = [score("train − validation", 0.1).to_dict()]
        row.run.mkdir(parents=True)
        write_json(row.run / "evaluation.json", {"threshold": 0.0, "detection": detection, "gaps": gaps})
        origin = {"data": {"train": "d1", "validation": "d2"}, "weights": {"sha256": "w"}, "commit": "c0ffee"}
        write_json(row.run / "result.json", {"selected": {"step": 1}, **origin})
        curve = {"step": 1, "split": "train", "loss": 0.5, "time": 1.7e9, "system/cpu_share": 0.25}
        (row.run / "metrics.jsonl").write_text(json.dumps(curve) + "\n")
        write_yaml(row.run / "config.yaml", row.finetune)
    return rows


@pytest.fixture
def made_up(tmp_path, write_experiment) -> tuple[Experiment, list[plan.Row]]:
    file = write_experiment(tmp_path, backbones=[{"name": name} for name in NAMES], cards=None)
    experiment = from_yaml(Experiment, file)
    return experiment, make_up(experiment)


def test_relation_of_what_is_on_disk(made_up, capsys):
    experiment, _ = made_up
    relation.main(experiment)
    printed = capsys.readouterr().out
    assert "Face recognition is closest (separability on train): undecided" in printed
    found = json.loads((experiment.folder / "relation.json").read_text())
    assert found["backbones"] == NAMES
    taus = {(p["name"], p["outcome"]): p["relations"][0]["score"]["value"] for p in found["predictors"]}
    assert taus["knn_auc_k20", "test"] == pytest.approx(1)
    assert taus["number of parameters", "test"] == pytest.approx(-1)  # the list's order, upside down
    first = found["differences"]["train"][0]
    assert (first["a"], first["b"]) == tuple(NAMES[:2])
    assert first["score"]["value"] == pytest.approx(0.05)
    assert len(found["differences"]["train"]) == math.comb(5, 2)


def test_mlflow_gets_the_headline_alone_and_the_scores_as_artifacts(made_up):
    experiment, rows = made_up
    collect.log_row(rows[0])
    with sqlite3.connect(experiment.runs / "mlflow.db") as store:
        keys = {key for (key,) in store.execute("select key from latest_metrics where key like 'separability/%'")}
        (folder,) = store.execute("select artifact_uri from runs").fetchone()
    assert keys == {
        f"separability/{data}/knn_auc_k20{end}" for data in ("train", "resample") for end in ("", "_low", "_high")
    }
    artifacts = {path.name for path in Path(folder.removeprefix("file://")).iterdir()}
    assert {"dinov2_vits14--train.json", "dinov2_vits14--resample.json", "evaluation.json"} <= artifacts


def test_mlflow_gets_all_metrics_per_video_and_the_auc_of_other_parts(made_up):
    experiment, rows = made_up
    path = rows[0].run / "evaluation.json"
    scores = [score("auc", 0.7).to_dict(), score("ece", 0.1).to_dict()]
    parts = dict.fromkeys(("per video", "swap", "swap, per video", "age=9", "age=<9", "age=>9"), scores)
    write_json(path, {**json.loads(path.read_text()), "slices": {"test": parts}})
    collect.log_row(rows[0])
    [run] = runs_of(experiment.tracking, experiment.name)
    found = {key for key in run.data.metrics if key.startswith("test/") and not key.endswith(("_low", "_high"))}
    # What MLflow would rename, so that "<9" and ">9" were one, is in the artifact alone.
    of_parts = {"test/swap/auc", "test/swap/per video/auc", "test/age: 9/auc"}
    assert found == {"test/auc", "test/per video/auc", "test/per video/ece", *of_parts}
    assert run.data.metrics["test/per video/auc_low"] == pytest.approx(0.67)


def test_mlflow_knows_what_a_run_was_made_from_and_when(made_up):
    experiment, rows = made_up
    collect.log_row(rows[0])
    [run] = runs_of(experiment.tracking, experiment.name)
    assert (run.data.params["train_digest"], run.data.params["validation_digest"]) == ("d1", "d2")
    assert run.data.params["weights_sha256"] == "w"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.metrics["system/cpu_share"] == 0.25
    [point] = MlflowClient(tracking_uri=experiment.tracking).get_metric_history(run.info.run_id, "curve/train/loss")
    assert (point.step, point.timestamp, point.value) == (1, 1_700_000_000_000, 0.5)


def test_a_server_that_is_away_costs_a_warning_and_a_later_call_completes_it_without_doubles(made_up, caplog):
    experiment, rows = made_up
    for row in rows[:2]:
        collect.log_row(replace(row, tracking_uri="http://127.0.0.1:9"))
    assert [record.message.count("jobs.report logs it later") for record in caplog.records] == [1, 1]
    ids = []
    for _ in range(2):
        for row in rows[:2]:
            collect.log_row(row)
        ids.append({run.info.run_name: run.info.run_id for run in runs_of(experiment.tracking, experiment.name)})
    assert ids[0] == ids[1]
    assert set(ids[0]) == {row.run.name for row in rows[:2]}


def runs_of(uri: str, experiment: str) -> list:
    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))
