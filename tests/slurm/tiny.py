"""A tiny experiment, and what must be true of its runs whatever happened to them; for the tests and for chaos.py."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
"""For jobs: a thread each, and this environment."""


def tiny_shards(folder: Path, dataset: str, fractions: dict[str, float]) -> dict[str, Path]:
    """Shard sets of 12 real faces (smooth noise) and 12 fakes of them (coarse noise), 64 pixels wide."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from data_shards.pack import pack

    rng = np.random.default_rng(list(dataset.encode()))  # no two datasets share a picture
    rows = []
    for group in range(12):
        for label, method, cells in (("real", "pristine", 4), ("fake", "coarse", 32)):
            image = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((64, 64))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG")
            path = folder / f"{method}-{group}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            rows.append((path.name, label, method, f"{dataset}-{group}", dataset))
    faces = pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset"])
    return pack(faces, folder, folder / "shards", fractions=fractions, workers=1)


def write_experiment(folder: Path, architectures=("test_resnet", "test_efficientnet"), **finetune) -> Path:
    """Experiment file: randomly initialised backbones of timm's own tests, an epoch each, all in ``folder``."""
    known = tiny_shards(folder / "known", "known", {"train": 0.5, "validation": 0.25, "test": 0.25})
    unseen = tiny_shards(folder / "unseen", "unseen", {"test": 1.0})
    cards = [
        {
            "name": f"tiny_{architecture}",
            "architecture": architecture,
            "pretext_task": "none",
            "family": "none",
            "weights": {"file": "none.safetensors"},
            "input_size": 64,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "licence": "Apache-2.0",
        }
        for architecture in architectures
    ]
    (folder / "cards.yaml").write_text(yaml.safe_dump(cards))
    settings = {
        "name": "tiny",
        "title": "Tiny",
        "notice": "Noise.",
        "runs": str(folder / "runs"),
        "cards": str(folder / "cards.yaml"),
        "replicates": 20,
        "data": {**{split: str(path) for split, path in known.items()}, "unseen": {"other": str(unseen["test"])}},
        "backbones": [{"name": card["name"], "initialisation": "random"} for card in cards],
        "finetune": {"epochs": 1, "batch_size": 4, "threads": 1, **finetune},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def make_plan(experiment: Path) -> Path:
    """Make the plan of an experiment file; returns its path."""
    command = [sys.executable, "-m", "jobs.plan", "--config", str(experiment)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return Path(done.stdout.strip())


def submit_row(cluster, plan: Path, *options: str, rows: str = "0", **environment: str) -> str:
    """Submit row 0 of a plan, or others; returns the array's id."""
    arguments = (f"--array={rows}", f"--output={plan.parent}/row.log", *options, "slurm/finetune_row.sh", plan)
    return cluster.sbatch(*arguments, cwd=ROOT, env=ENVIRONMENT | environment)


def log(plan: Path) -> str:
    """What the rows of a plan have said."""
    return (plan.parent / "row.log").read_text()


def updates(run: Path) -> int:
    """Updates that a run has logged."""
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def processes(plan: Path) -> list[psutil.Process]:
    """The processes that train rows of a plan, on whatever node, with their launchers."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(plan.parent) in line and "trainer/finetune.py" in line:
            found.append(process)
    return found


def check_equal(run: Path, undisturbed: Path) -> None:
    """Assert that a run is finished, and equal bit by bit to one that nothing has disturbed."""
    import pyarrow.parquet as pq

    assert (run / "done.json").exists()
    assert not (run / "failed.json").exists()
    for file in ("best.safetensors", "last.safetensors"):
        assert (run / file).read_bytes() == (undisturbed / file).read_bytes(), file
    assert metrics(run) == metrics(undisturbed), "each update and each evaluation once, with the same numbers"
    assert _evaluation(run) == _evaluation(undisturbed)
    names = {path.name for path in undisturbed.glob("scores/*.parquet")}
    assert {path.name for path in run.glob("scores/*")} == names
    for name in names:
        assert pq.read_table(run / "scores" / name).equals(pq.read_table(undisturbed / "scores" / name)), name


def logged_runs(runs: Path) -> list[tuple[str, str]]:
    """Name and status of every run in MLflow's database."""
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as database:
        return database.execute("select name, status from runs where lifecycle_stage = 'active'").fetchall()


def _evaluation(run: Path) -> dict:
    found = json.loads((run / "evaluation.json").read_text())
    return {key: found[key] for key in ("threshold", "detection", "gaps")}


def world(run: Path) -> int:
    """Processes that a run was trained with."""
    return json.loads((run / "result.json").read_text())["processes"]


def scores(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Sample numbers and logits by data set."""
    import pyarrow.parquet as pq

    tables = {path.stem: pq.read_table(path, columns=["index", "logit"]) for path in run.glob("scores/*.parquet")}
    return {name: (table["index"].to_pylist(), table["logit"].to_pylist()) for name, table in tables.items()}


def metrics(run: Path) -> list[dict]:
    """What a run has logged of its results, not of their time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "epoch", "train/", "validation/")
    return [{key: value for key, value in row.items() if key.startswith(kept)} for row in rows]
