"""The results page from the command line, of a tiny backbone that was measured but not fine-tuned."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_shards.command import from_yaml
from data_shards.files import write_json
from evaluation.bootstrap import Sampled
from evaluation.dose import dose_response
from evaluation.score import Score
from jobs import benchmark
from jobs.experiment import Experiment
from tests.jobs.conftest import ROOT, SAMPLE


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, write_experiment):
    """Experiment file, measured on the smallest set of the sample alone."""
    data = {name: str(SAMPLE / split) for name, split in (("train", "unseen"), ("validation", "validation"))}
    backbones = [{"name": "tiny_resnet", "initialisation": "random"}]
    path = write_experiment(
        tmp_path_factory.mktemp("results"),
        data={**data, "test": str(SAMPLE / "test")},
        backbones=backbones,
        replicates=10,
        layers=False,
    )
    content = from_yaml(Experiment, path)
    benchmark.measure(content, content.backbones[0])
    benchmark.measure_pixels(content)
    return path


def run(*arguments):
    command = [sys.executable, "-m", "jobs.results", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_page_and_its_figures_are_written(experiment, tmp_path):
    scores = [Score("knn_auc_k5", value, value - 0.1, value + 0.1, True, 60, "") for value in (0.5, 0.7, 0.9)]
    curve = dose_response([0, 0.5, 1], [Sampled(score, np.full(5, score.value)) for score in scores], chance=0.5, p=0.3)
    dose = from_yaml(Experiment, experiment).folder / "dose" / "tiny_resnet-random.json"
    write_json(dose, {"backbone": "tiny_resnet-random", "curves": {"blend": [curve.to_dict()]}})

    out = tmp_path / "docs" / "PAGE.md"
    done = run(experiment, f"out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    page = out.read_text()
    assert f"$ python -m jobs.benchmark {experiment}\n$ python -m jobs.results {experiment} out={out}\n" in page
    assert "| *blend* | *tiny_resnet-random* |" in page
    assert "pixel statistics" in page
    assert "fine-tuning of" in page  # what is missing is named
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert [name for name in figures if "pictures/" not in name] == ["PAGE/separability-on-train.png"]
    assert len(figures) == 3  # PCA and t-SNE
    for name in figures:
        Image.open(out.parent / name).verify()


@pytest.mark.slow
def test_commands_are_shown_as_they_are_given(experiment, tmp_path):
    out = tmp_path / "PAGE.md"
    done = run(experiment, f"out={out}", "commands=[make all, make page]")
    assert done.returncode == 0, done.stderr
    assert "```console\n$ make all\n$ make page\n```" in out.read_text()


def test_a_missing_experiment_is_an_error_in_words(tmp_path):
    done = run(tmp_path / "absent.yaml")
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr
    assert "Traceback" not in done.stderr
