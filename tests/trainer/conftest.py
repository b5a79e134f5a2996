"""Small learnable shard sets, tiny backbones without weights, and ways to fine-tune them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_shards.command import to_dict, write_yaml
from data_shards.pack import pack
from tests.trainer import launching

SIZES = {"train": 20, "validation": 11, "test": 6}  # pairs of a real and a fake face
CARD = (
    "- {{name: {name}, architecture: {architecture}, pretext_task: none, family: test, licence: none, input_size: 32, "
    "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], weights: {{file: absent.safetensors}}}}\n"
)


def face(random: np.random.Generator, fake: bool) -> Image.Image:
    """A 32 x 32 blur; a fake one has brighter even rows, which a tiny model learns in a few epochs."""
    coarse = Image.fromarray(random.integers(60, 200, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.int16)
    pixels = pixels + random.integers(-10, 11, pixels.shape)
    if fake:
        pixels[::2] += 16
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def toy_sets(tmp_path_factory) -> dict[str, Path]:
    """Shard sets ``train`` (40 faces in 3 shards), ``validation`` (22) and ``test`` (12)."""
    root, random, rows = tmp_path_factory.mktemp("toy"), np.random.default_rng(0), []
    for split, pairs in SIZES.items():
        for number in range(2 * pairs):
            label, method = (("real", "pristine"), ("fake", "stripes"))[number % 2]
            path = f"{split}-{number}.jpg"
            face(random, label == "fake").save(root / path, quality=95)
            rows.append((path, label, method, f"{split}{number // 2}", "toy", split))
    faces = pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset", "split"])
    return pack(faces, root, root / "shards", shard_size=16, workers=1)


@pytest.fixture(scope="session")
def toy_cards(tmp_path_factory) -> Path:
    """Cards ``tiny_vit`` and ``tiny_resnet`` for random initialisation at 32 px."""
    file = tmp_path_factory.mktemp("cards") / "cards.yaml"
    cards = {"tiny_vit": "test_vit", "tiny_resnet": "test_resnet"}
    file.write_text("".join(CARD.format(name=name, architecture=timm) for name, timm in cards.items()))
    return file


@pytest.fixture
def toy_config(tmp_path, toy_sets, toy_cards):
    """Function (**keys) → FinetuneConfig: a tiny random ViT, 10 updates of 16 samples, runs below tmp_path."""
    from trainer.config import FinetuneConfig

    def make(**keys) -> FinetuneConfig:
        keys = {"backbone": "tiny_vit", "epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "log_every": 2, **keys}
        places = {"train": toy_sets["train"], "validation": toy_sets["validation"], "runs": tmp_path / "runs"}
        return FinetuneConfig(initialisation="random", **{"cards": toy_cards, **places, **keys})

    return make


@pytest.fixture
def train():
    """Function (config, report=None) → result: ``fit`` in this process."""
    from trainer.distributed import build_accelerator
    from trainer.loop import fit

    def run(config, report=None):
        return fit(config, build_accelerator(config), report)

    return run


@pytest.fixture
def launch(tmp_path):
    """Function (config, processes=1, **environment) → finished process of the real accelerate launch."""
    from trainer.launch import command

    def run(config, processes: int = 1, **environment: str) -> subprocess.CompletedProcess:
        file = tmp_path / f"{config.directory.name}-{processes}.yaml"
        write_yaml(file, to_dict(config))
        line = command(file, processes=processes, deepspeed_stage=config.deepspeed_stage)
        return launching.run(line, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, cwd=tmp_path)

    return run


@pytest.fixture(scope="session")
def tiny_cards(tmp_path_factory, toy_cards) -> Path:
    """The cards of ``toy_cards`` with weights: NAME.safetensors beside the file."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny")
    text = toy_cards.read_text()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for name, architecture in (("tiny_vit", "test_vit"), ("tiny_resnet", "test_resnet")):
            save_file(timm.create_model(architecture, num_classes=0).state_dict(), folder / f"{name}.safetensors")
            text = text.replace("absent.safetensors", f"{folder}/{name}.safetensors", 1)
    (folder / "cards.yaml").write_text(text)
    return folder / "cards.yaml"


@pytest.fixture
def assets() -> Path:
    """The folder with real faces and weights beside the checkout."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "assets"
    if not (folder / "weights" / "weights.json").exists():
        pytest.skip("there are no real weights beside the checkout")
    return folder
