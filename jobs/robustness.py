"""AUC of fine-tuned backbones on degraded images: ``python -m jobs.robustness EXPERIMENT.yaml samples=400``.

JPEG, blur, resizing and noise of rising strength, applied to the test images at the size that the network sees. Writes
``robustness.json`` into every finished run directory, of which jobs.report draws curves. What is there is left alone.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import InputError, from_yaml, run
from data_shards.files import digest, sha256_file, write_json
from evaluation.score import Score
from jobs import plan
from jobs.experiment import Experiment

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
"""Raised when the same run and images would give other scores than an earlier version wrote."""

Points = dict[str, list[tuple[float, Score]]]


@dataclass
class Robustness:
    """AUC of the finished runs of an experiment on degraded test images."""

    experiment: Path
    """Experiment file; a bare FILE.yaml is taken for it."""
    samples: int = 0
    """Test images to take, the first of the set's order; 0: all. Every image is scored eighteen times."""
    replicates: int = 500
    """Bootstrap replicates behind every interval."""
    batch_size: int = 32


def robustness(row: plan.Row, *, samples: int, replicates: int, batch_size: int) -> Path:
    """Write ``robustness.json`` of one finished run."""
    from data_shards.manifest import ShardSet
    from evaluation.detection import detection
    from trainer.predict import check_finished

    shards = ShardSet.open(row.score["test"])
    weights, out = check_finished(row.run, "best"), row.run / "robustness.json"
    inputs = digest([SCHEMA, sha256_file(weights), shards.digest, samples, replicates])
    if out.is_file() and json.loads(out.read_text(encoding="utf-8"))["inputs"] == inputs:
        return out
    count = min(samples or len(shards), len(shards))
    label, group = shards.labels[:count], shards.column("group")[:count].astype(str)
    if len(set(label.tolist())) < 2:
        raise InputError(f"samples={samples}: the first {count} images of {shards.path} are of one class; give more")
    found = {}
    for (kind, level), logits in _logits(row.run, shards, count, batch_size).items():
        scores = detection(label, logits, group, threshold=0, replicates=replicates)
        found.setdefault(kind, []).append([level, scores[0].to_dict()])
    (untouched,) = found.pop("none")
    write_json(out, {"inputs": inputs, "curves": {kind: [untouched, *points] for kind, points in found.items()}})
    return out


def read(path: Path) -> Points:
    """Degradation → (level, AUC), the untouched images first; nothing where there is no file."""
    if not path.is_file():
        return {}
    curves = json.loads(path.read_text(encoding="utf-8"))["curves"]
    return {kind: [(level, Score.from_dict(score)) for level, score in points] for kind, points in curves.items()}


def _logits(run_directory: Path, shards, count: int, batch_size: int) -> dict[tuple[str, float], np.ndarray]:
    """(degradation, level) → logits of the first ``count`` samples; each image is read once."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from data_shards.loader import evaluation_batches
    from evaluation.degradations import DEGRADATIONS, degrade
    from trainer.predict import load_run
    from trainer.preprocess import normalize

    model, card, device = load_run(run_directory)
    layout = torch.channels_last  # twice as fast for most convolutional networks
    model = model.to(memory_format=layout)
    levels = [("none", 0.0), *((kind, level) for kind, (_, some) in DEGRADATIONS.items() for level in some)]
    logits = {each: np.full(count, np.nan) for each in levels}
    batches = evaluation_batches(shards, batch_size=batch_size, image_size=card.input_size)
    progress = tqdm(total=count, desc=f"robustness of {run_directory.name}", disable=not sys.stderr.isatty())
    with torch.inference_mode(), progress:
        for batch in batches:
            index = batch.index.numpy()
            index = index[index < count]
            images = batch.images.numpy()[: len(index)]
            for kind, level in levels:
                changed = images if kind == "none" else degrade(images, kind, level, index)
                output = model(normalize(torch.from_numpy(changed).to(device), card, memory_format=layout))
                logits[kind, level][index] = output.double().cpu().numpy()
            progress.update(len(index))
            if index[-1] == count - 1:
                break
    return logits


def main(config: Robustness) -> None:
    experiment = from_yaml(Experiment, config.experiment)
    rows = [row for row in plan.make(experiment) if (row.run / "evaluation.json").is_file()]
    if not rows:
        raise InputError(f"{config.experiment}: no run is finished; run python -m jobs.benchmark {config.experiment}")
    for row in rows:
        options = {"samples": config.samples, "replicates": config.replicates, "batch_size": config.batch_size}
        for kind, points in read(robustness(row, **options)).items():
            print(
                row.run.name, kind, *(f"{level:g}: {score.value:.3f}" for level, score in points), sep="  ", flush=True
            )


if __name__ == "__main__":
    arguments = [f"experiment={word}" if re.fullmatch(r"[^=]+\.ya?ml", word) else word for word in sys.argv[1:]]
    run(Robustness, main, arguments)
