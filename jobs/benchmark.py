"""The main job: ``python -m jobs.benchmark EXPERIMENT.yaml``.

For each backbone: frozen features, separability, fine-tuning, scores on the test and unseen sets, MLflow, and one
report; separability of plain pixel statistics as a control. Running it again does only what is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.command import InputError, run
from data_shards.files import atomic
from jobs import collect, leaks, pixels, plan
from jobs.experiment import Backbone, Experiment
from jobs.layers import measure_layers
from jobs.nuisances import nuisances
from jobs.run import Launch, RowFailed, run_row
from jobs.separability import separability
from trainer.finetune import STOPPED

log = logging.getLogger(__name__)


def benchmark(experiment: Experiment) -> list[RowFailed]:
    """Do what is missing of the experiment; returns the rows that failed, which do not stop the others."""
    check(experiment)
    plan_file = plan.keep(experiment)
    rows = plan.read(plan_file)
    steps = len(experiment.backbones) + 1 + len(rows)
    files = []
    for step, backbone in enumerate(experiment.backbones, 1):
        _announce(step, steps, f"{backbone.label}: features")
        files.append(extract_features(experiment, backbone))
    _announce(len(experiment.backbones) + 1, steps, f"separability of all backbones, and of {pixels.LABEL} (control)")
    score_all(experiment, files)
    draw_thumbnails(experiment)
    failures = []
    for row in rows:
        _announce(len(experiment.backbones) + row.number + 2, steps, f"{row.run.name}: fine-tuning and evaluation")
        try:
            run_row(row, Launch(plan=plan_file, row=row.number))
        except RowFailed as failure:
            log.error("%s", failure)
            if failure.status == STOPPED:
                sys.exit(STOPPED)
            failures.append(failure)
        else:
            collect.log_row(row)
    return failures


def measure(experiment: Experiment, backbone: Backbone) -> None:
    """Features of one backbone on the separability sets, their scores, and their two-dimensional pictures."""
    score(experiment, backbone, extract_features(experiment, backbone))


def extract_features(experiment: Experiment, backbone: Backbone) -> dict[str, Path]:
    """Features files of one backbone by separability set, computed where they are missing; also all its layers, where
    the experiment asks for them."""
    from data_shards.manifest import ShardSet
    from trainer.card import get_card
    from trainer.features import extract

    card = get_card(backbone.name, experiment.cards)
    files = {
        name: extract(
            card,
            ShardSet.open(path),
            experiment.runs / "features",
            initialisation=backbone.initialisation,
            batch_size=experiment.feature_batch_size,
            weights_dir=experiment.weights_dir,
        )
        for name, path in experiment.separability_sets.items()
    }
    if experiment.layers:
        try:
            measure_layers(experiment, backbone)
        except InputError as error:  # an ONNX graph names no layers
            log.warning("%s", error)
    return files


def score_all(experiment: Experiment, files: Sequence[dict[str, Path]]) -> None:
    """Scores and pictures of all backbones and of the control: as many at a time as there are cores, each with its
    share of them; on a GPU one after the other."""
    from joblib import Parallel, cpu_count, delayed
    from tqdm import tqdm

    from data_shards.manifest import ShardSet

    for path in experiment.separability_sets.values():  # shared by all: here, or each would compute it
        nuisances(ShardSet.open(path), experiment.runs / "features", experiment.nuisances)
    tasks = [delayed(_without_bars)(measure_pixels, experiment)]
    tasks += [
        delayed(_without_bars)(score, experiment, *each) for each in zip(experiment.backbones, files, strict=True)
    ]
    workers = min(len(tasks), cpu_count()) if experiment.device == "cpu" else 1
    done = Parallel(n_jobs=workers, return_as="generator_unordered")(tasks)
    for _ in tqdm(done, "separability", len(tasks), unit="backbone", disable=None):
        pass


def _without_bars(function: Callable[..., None], *arguments: Any) -> None:
    """Bars of several processes would write over each other: on a terminal only the one over all of them is drawn."""
    with contextlib.redirect_stderr(io.StringIO() if sys.stderr.isatty() else sys.stderr):
        function(*arguments)


def score(experiment: Experiment, backbone: Backbone, files: dict[str, Path]) -> None:
    """Scores of the features of one backbone by separability set, and their two-dimensional pictures."""
    for name, features in files.items():
        _score(experiment, backbone.label, name, features)
    embed([*files.values()], collect.embedding_file(experiment.folder, backbone.label), with_umap=experiment.umap)


def measure_pixels(experiment: Experiment) -> None:
    """The control that asks how far colour, sharpness and JPEG traces alone separate."""
    from data_shards.manifest import ShardSet

    for name, path in experiment.separability_sets.items():
        features = pixels.pixel_features(ShardSet.open(path), experiment.runs / "features")
        _score(experiment, pixels.LABEL, name, features)


def _score(experiment: Experiment, label: str, data: str, features: Path) -> None:
    from data_shards.manifest import ShardSet

    shards = ShardSet.open(experiment.separability_sets[data])
    separability(
        features,
        collect.separability_file(experiment.folder, label, data),
        replicates=experiment.replicates,
        nuisances=nuisances(shards, experiment.runs / "features", experiment.nuisances),
        video=shards.videos,
        device=experiment.device,
        chunk=experiment.chunk,
    )


def embed(features: list[Path], out: Path, *, with_umap: bool = False) -> None:
    """PCA, t-SNE and, if asked, UMAP of several features files together: points, labels, methods, datasets."""
    import numpy as np

    from evaluation.embedding import pca, tsne, umap
    from trainer.features import read_features

    source = np.array([path.name for path in features])
    if out.is_file():
        with np.load(out, allow_pickle=False) as done:
            if np.array_equal(done["source"], source) and ("umap" in done or not with_umap):
                return
    parts = [read_features(path) for path in features]
    values = np.concatenate([part.features for part in parts])
    pictures = {"pca": pca(values), "tsne": tsne(values), **({"umap": umap(values)} if with_umap else {})}
    with atomic(out) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            source=source,
            **pictures,
            label=np.concatenate([part.label for part in parts]),
            # fixed-width text: arrays of objects would need pickle to be read
            method=np.concatenate([part.method for part in parts]).astype(str),
            dataset=np.concatenate([part.dataset for part in parts]).astype(str),
        )


def draw_thumbnails(experiment: Experiment, size: int = 64) -> None:
    """Small pictures of the samples of the separability sets, uint8 (n, size, size, 3), for the report."""
    import numpy as np

    from data_shards.loader import evaluation_batches
    from data_shards.manifest import ShardSet

    if not experiment.show_faces:
        return
    out = collect.thumbnail_file(experiment.folder)
    sets = [ShardSet.open(path) for path in experiment.separability_sets.values()]
    source = np.array([each.digest for each in sets])
    if out.is_file():
        with np.load(out, allow_pickle=False) as done:
            if np.array_equal(done["source"], source):
                return
    faces = [
        batch.images.numpy() for each in sets for batch in evaluation_batches(each, batch_size=64, image_size=size)
    ]
    with atomic(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, source=source, faces=np.concatenate(faces))


def check(experiment: Experiment) -> None:
    """Raise InputError before any work when a card is unknown, a shard set is not what its manifest says, or a group
    of the training or validation set is also in another set."""
    from trainer.card import get_card

    for backbone in experiment.backbones:
        get_card(backbone.name, experiment.cards)
    if experiment.umap and importlib.util.find_spec("umap") is None:
        raise InputError("umap: true needs umap-learn: pip install 'model-separability[umap]'; or remove the key")
    leaks.check(experiment.data.by_name())


def _announce(step: int, steps: int, what: str) -> None:
    print(f"[{step}/{steps}] {what}", file=sys.stderr, flush=True)


@dataclass
class Benchmark(Experiment):
    """The whole experiment, here or on a cluster."""

    launcher: Literal["local", "slurm"] = "local"
    """slurm: submit it as jobs, through slurm/benchmark.sh, and return."""
    sbatch: list[str] = field(default_factory=list)
    """With launcher=slurm: options of sbatch for the rows."""
    dry_run: bool = False
    """With launcher=slurm: print what would be submitted."""


def submit(benchmark: Benchmark) -> None:
    """Become the script that submits the experiment, as it is with all that was given on the command line."""
    from jobs.launcher import Slurm

    experiment = benchmark.folder / "experiment.yaml"
    command = Slurm().benchmark(experiment, benchmark.sbatch, dry_run=benchmark.dry_run)
    plan.keep(benchmark)
    os.execvp(command[0], command)


def main(experiment: Benchmark) -> None:
    if experiment.launcher == "slurm":
        submit(experiment)
    from evaluation.report import text_table
    from jobs import report

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    failures = benchmark(experiment)
    report.log_all(experiment)
    path, content = report.write(experiment)
    print(text_table(content))
    print(f"report: {path.resolve()}")
    print(f"MLflow: {sys.executable} -m mlflow ui --host 127.0.0.1 --backend-store-uri {experiment.tracking}")
    print("        then http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
    if failures:
        sys.exit(f"error: {len(failures)} rows failed, see above; the same command goes on with what is missing")


if __name__ == "__main__":
    run(Benchmark, main)
