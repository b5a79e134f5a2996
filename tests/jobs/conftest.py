"""A tiny experiment: the embedded sample, two small architectures of timm's own tests with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data_shards" / "sample"


@pytest.fixture(scope="session")
def tiny_cards(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("cards") / "cards.yaml"
    cards = [
        {
            "name": name,
            "architecture": architecture,
            "pretext_task": "none",
            "family": "none",
            "weights": {"file": "absent.safetensors"},
            "input_size": 64,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "licence": "none",
        }
        for name, architecture in (("tiny_resnet", "test_resnet"), ("tiny_efficientnet", "test_efficientnet"))
    ]
    file.write_text(yaml.safe_dump(cards))
    return file


@pytest.fixture(scope="session")
def write_experiment(tiny_cards):
    """Function (folder, **changes) → path of an experiment file whose results lie in ``folder``."""

    def write(folder: Path, **changes) -> Path:
        values = {
            "name": "tiny",
            "title": "Tiny",
            "notice": "A test.",
            "data": {
                "train": str(SAMPLE / "train"),
                "validation": str(SAMPLE / "validation"),
                "test": str(SAMPLE / "test"),
                "unseen": {"resample": str(SAMPLE / "unseen")},
            },
            "backbones": [
                {"name": "tiny_resnet", "initialisation": "random"},
                {"name": "tiny_efficientnet", "initialisation": "random", "finetune": {"learning_rate": 0.001}},
            ],
            "cards": str(tiny_cards),
            "runs": str(folder / "runs"),
            "replicates": 50,
            "layers": True,
            "finetune": {"mode": "full", "epochs": 1, "batch_size": 20},
            **changes,
        }
        path = folder / "experiment.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write
