"""Separability of every layer of the backbones, stem to head: ``python -m jobs.layers EXPERIMENT.yaml``.

Writes ``RUNS/NAME/separability/BACKBONE--DATA--layers.json``, of which jobs.report draws a heat map. The benchmark does
the same where the experiment says ``layers: true``. What is there is not computed again.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_shards.command import InputError, run
from data_shards.files import digest, write_json
from data_shards.manifest import ShardSet
from evaluation.score import Score
from jobs.experiment import Backbone, Experiment
from trainer.card import get_card

SCHEMA = 2
"""Raised when the same features would give other scores than an earlier version wrote."""


def layers_file(experiment: Experiment, backbone: str, data: str) -> Path:
    """Where the scores of a backbone's layers lie."""
    return experiment.folder / "separability" / f"{backbone.replace(' ', '-')}--{data}--layers.json"


def measure_layers(experiment: Experiment, backbone: Backbone) -> None:
    """Headline score of every layer on every separability set; InputError for a backbone that names no layers."""
    from evaluation.panel import headline
    from trainer.features import extract_layers, read_features

    for name, path in experiment.separability_sets.items():
        files = extract_layers(
            get_card(backbone.name, experiment.cards),
            ShardSet.open(path),
            experiment.runs / "features",
            initialisation=backbone.initialisation,
            batch_size=experiment.feature_batch_size,
            weights_dir=experiment.weights_dir,
        )
        out = layers_file(experiment, backbone.label, name)
        inputs = digest([SCHEMA, [file.name for file in files], experiment.replicates])
        if out.is_file() and json.loads(out.read_text(encoding="utf-8"))["inputs"] == inputs:
            continue
        scores = []
        for file in files:
            data = read_features(file)
            options = {"seed": 0, "replicates": experiment.replicates, "compute": experiment.compute}
            score = headline(data.features, data.label, data.group, **options)
            scores.append(score.to_dict())
        write_json(out, {"inputs": inputs, "scores": scores})


def read(path: Path) -> list[Score]:
    """Scores from the first layer to the card's own features; none where there is no file."""
    if not path.is_file():
        return []
    return [Score.from_dict(each) for each in json.loads(path.read_text(encoding="utf-8"))["scores"]]


def main(experiment: Experiment) -> None:
    for backbone in experiment.backbones:
        try:
            measure_layers(experiment, backbone)
        except InputError as error:
            print(f"{backbone.label}: left out: {error}")
            continue
        for data in experiment.separability_sets:
            found = read(layers_file(experiment, backbone.label, data))
            print(f"{backbone.label} on {data}:", *(f"{score.value:.3f}" for score in found))


if __name__ == "__main__":
    run(Experiment, main)
