"""The main job from an experiment file to the report, MLflow and back: real stages, tiny backbones."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_shards.command import from_yaml
from jobs.experiment import Experiment

ROOT = Path(__file__).parents[2]
ASSETS = ROOT.parent / "shared" / "assets"
COMMAND = 600  # seconds that a command may take on busy cores
pytestmark = pytest.mark.timeout(2 * COMMAND + 60)  # that of the fixture, and one of the test's own


def command(*arguments: str | Path, module: str = "jobs.benchmark") -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_experiment) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder and the first call of a benchmark."""
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, command(write_experiment(folder))


@pytest.mark.slow
def test_ends_with_the_table_the_report_and_the_way_to_mlflow(finished):
    folder, first = finished
    assert first.returncode == 0, first.stderr
    assert "tiny_resnet-random" in first.stdout
    assert f"report: {folder / 'runs' / 'tiny' / 'report.html'}" in first.stdout
    assert f"mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{folder / 'runs' / 'mlflow.db'}" in first.stdout
    page = (folder / "runs" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "tiny_efficientnet-random" in page
    assert "A test." in page
    kept = folder / "runs" / "tiny" / "experiment.yaml"
    assert f"python -m jobs.benchmark {kept}" in page
    assert from_yaml(Experiment, kept) == from_yaml(Experiment, folder / "experiment.yaml")


@pytest.mark.slow
def test_scores_say_what_the_files_say(finished):
    """AUC in evaluation.json is scikit-learn's on the score files; the threshold is from validation alone."""
    from pyarrow import parquet
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    folder, _ = finished
    (run,) = (folder / "runs" / "tiny").glob("tiny_resnet-random-*")
    evaluation = json.loads((run / "evaluation.json").read_text())
    for name, samples in {"train": 220, "validation": 80, "test": 100, "resample": 120}.items():
        table = parquet.read_table(run / "scores" / f"{name}.parquet").to_pandas()
        scores = {score["name"]: score for score in evaluation["detection"][name]}
        assert len(table) == samples == scores["auc"]["n"]
        assert scores["auc"]["value"] == pytest.approx(roc_auc_score(table.label, table.logit), abs=1e-12)
        expected = balanced_accuracy_score(table.label, table.logit >= evaluation["threshold"])
        assert scores["balanced_accuracy"]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_auc_by_method_is_that_of_the_scores(finished):
    from pyarrow import parquet
    from sklearn.metrics import roc_auc_score

    folder, _ = finished
    (run,) = (folder / "runs" / "tiny").glob("tiny_resnet-random-*")
    evaluation = json.loads((run / "evaluation.json").read_text())
    table = parquet.read_table(run / "scores" / "test.parquet").to_pandas()
    methods = sorted(table[table.label == 1].method.unique())
    parts = evaluation["slices"]["test"]
    assert list(parts) == methods  # and nothing per video: the sample names none
    one = table[(table.label == 0) | (table.method == methods[0])]
    assert parts[methods[0]][0]["value"] == pytest.approx(roc_auc_score(one.label, one.logit), abs=1e-12)
    assert sum(samples for _, _, samples in evaluation["reliability"]["test"]) == len(table)


@pytest.mark.slow
def test_layers_confounds_and_figures_are_there(finished):
    folder, _ = finished
    scores = folder / "runs" / "tiny" / "separability"
    layers = json.loads((scores / "tiny_resnet-random--train--layers.json").read_text())["scores"]
    assert len(layers) == 6  # stem, four stages, features
    panel = json.loads((scores / "tiny_resnet-random--train.json").read_text())
    assert layers[-1]["value"] == pytest.approx(panel["scores"][0]["value"], abs=1e-6)  # the card's own features
    assert {"brightness", "sharpness", "all of them"} <= {each["name"] for each in panel["confounds"]}
    drawn = {path.name for path in (folder / "runs" / "tiny" / "figures").iterdir()}
    assert {"separability-on-train.png", "layers-on-train.pdf", "overfitting.pdf"} <= drawn


@pytest.mark.slow
def test_robustness_of_the_finished_runs(finished):
    folder, _ = finished
    result = command(folder / "experiment.yaml", "samples=60", "replicates=20", module="jobs.robustness")
    assert result.returncode == 0, result.stderr
    (run,) = (folder / "runs" / "tiny").glob("tiny_resnet-random-*")
    curves = json.loads((run / "robustness.json").read_text())["curves"]
    assert [level for level, _ in curves["JPEG quality"]] == [0, 100, 90, 70, 50, 30, 10]
    untouched = curves["JPEG quality"][0][1]
    assert untouched == curves["blur, sigma"][0][1]
    assert untouched["n"] == 60


@pytest.mark.slow
def test_mlflow_holds_one_comparable_run_per_backbone(finished):
    folder, _ = finished
    with sqlite3.connect(folder / "runs" / "mlflow.db") as store:
        runs = store.execute("select run_uuid from runs where lifecycle_stage = 'active'").fetchall()
        labels = store.execute("select value from params where key = 'label'").fetchall()
        aucs = store.execute("select value from latest_metrics where key = 'test/auc'").fetchall()
        frozen = store.execute("select count(*) from latest_metrics where key like 'separability/train/%'").fetchone()
    assert len(runs) == len(aucs) == 2
    assert {label for (label,) in labels} == {"tiny_resnet-random", "tiny_efficientnet-random"}
    assert frozen[0] > 0


@pytest.mark.slow
def test_again_does_nothing_and_a_lost_piece_alone_is_made_again(finished):
    folder, _ = finished
    runs = folder / "runs"
    kept = ("*/*/result.json", "*/*/best.safetensors", "*/*/scores/*.parquet", "*/*/evaluation.json", "features/*")
    before = {path: path.stat().st_mtime_ns for pattern in kept for path in runs.glob(pattern)}
    lost = next(runs.glob("tiny/tiny_resnet-random-*/scores/test.parquet"))
    content = lost.read_bytes()
    lost.unlink()
    again = command(folder / "experiment.yaml")
    assert again.returncode == 0, again.stderr
    assert lost.read_bytes() == content
    after = {path: path.stat().st_mtime_ns for pattern in kept for path in runs.glob(pattern)}
    assert {path for path in after if after[path] != before[path]} == {lost}
    with sqlite3.connect(runs / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (2,)


@pytest.mark.slow
def test_the_pictures_show_all_separability_samples(finished):
    folder, _ = finished
    with np.load(folder / "runs/tiny/separability/tiny_resnet-random--embedding.npz", allow_pickle=False) as arrays:
        assert arrays["pca"].shape == arrays["tsne"].shape == (220 + 120, 2)
        assert set(arrays["dataset"]) == {"sample", "sample-unseen"}


def mistakes(folder: Path) -> dict[str, tuple[dict, str]]:
    sample = ROOT / "data_shards" / "sample"
    sets = {split: str(sample / split) for split in ("train", "validation", "test")}
    return {
        "an unknown backbone": ({"backbones": [{"name": "dinov2_vits41"}]}, "did you mean 'dinov2_vits14'"),
        "a backbone twice": ({"backbones": [{"name": "dinov2_vits14"}] * 2}, "'dinov2_vits14' twice"),
        "a missing set": ({"data": {**sets, "test": str(folder / "nowhere")}}, "nowhere"),
        "a leak": ({"data": {**sets, "unseen": {"again": sets["train"]}}}, "is in both 'train' and 'again'"),
        "an unknown key": ({"backbnes": []}, "did you mean 'backbones'"),
        "an unknown hyperparameter": ({"finetune": {"epoch": 3}}, "did you mean 'epochs'"),
        "a key of the experiment's own": ({"finetune": {"seed": 3}}, "finetune.seed is set by the experiment"),
        "missing weights": ({"backbones": [{"name": "tiny_resnet"}]}, "tiny_resnet"),
    }


@pytest.mark.parametrize("mistake", mistakes(Path()))
def test_mistakes_are_one_line_and_leave_nothing(mistake, tmp_path, write_experiment):
    changes, message = mistakes(tmp_path)[mistake]
    result = command(write_experiment(tmp_path, **changes))
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert [line for line in lines if not line.startswith("[")] == lines[-1:], result.stderr
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    left = [
        path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("experiment.yaml", "plan.jsonl")
    ]
    assert left == []


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.is_dir(), reason="no real faces and weights beside the checkout")
def test_real_faces_and_real_weights_scaled_down(tmp_path):
    """`make benchmark-real` with two of the backbones, one of them frozen only, and a fiftieth of the faces."""
    for only, fractions in (("dfdc", (0.04, 0.03, 0.03)), ("stylegan", (0, 0, 0.05))):
        train, validation, test = fractions
        packed = command(
            f"faces={ASSETS / 'faces' / 'faces.csv'}",
            f"only={only}",
            f"out={tmp_path / only}",
            *(f"train={train}", f"validation={validation}", f"test={test}"),
            module="data_shards.pack",
        )
        assert packed.returncode == 0, packed.stderr
    experiment = yaml.safe_load((ROOT / "jobs" / "configs" / "real.yaml").read_text())
    experiment["data"] = {
        **{split: str(tmp_path / "dfdc" / split) for split in ("train", "validation", "test")},
        "unseen": {"stylegan": str(tmp_path / "stylegan" / "test")},
    }
    experiment["backbones"] = [{"name": "imagenet_mobilenetv2"}, {"name": "edgeface_s", "seeds": []}]
    experiment["finetune"] |= {"epochs": 1}
    experiment |= {"seeds": [0], "replicates": 100, "layers": False}
    experiment |= {"runs": str(tmp_path / "runs"), "weights_dir": str(ASSETS / "weights")}
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(experiment))
    result = command(tmp_path / "real.yaml")
    assert result.returncode == 0, result.stderr
    assert "imagenet_mobilenetv2" in result.stdout
    assert "edgeface_s" in result.stdout
