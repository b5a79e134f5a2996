"""The embedded sample: whole, balanced, free of leaks between its sets, and made by a function of its seeds."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_shards import make_sample
from data_shards.command import InputError
from data_shards.faces import check_splits
from data_shards.files import sha256_file
from data_shards.forge import METHODS, forge, rng_for
from data_shards.forgeries import encode
from data_shards.make_sample import PARTS, SampleConfig, build, pair_alike
from data_shards.manifest import ShardSet
from data_shards.splits import components

SAMPLE = Path(make_sample.__file__).parent / "sample"
FACES = {"train": 110, "validation": 40, "test": 50, "unseen": 60}


def index(name: str) -> pd.DataFrame:
    return pd.read_parquet(SAMPLE / name / "index.parquet")


def image_bytes(name: str, row: int = 0) -> bytes:
    shards, table = ShardSet.open(SAMPLE / name), index(name)
    with open(shards.shard_path(int(table["shard"][row])), "rb") as file:
        file.seek(int(table["offset"][row]))
        return file.read(int(table["length"][row]))


@pytest.fixture(scope="module")
def faces() -> dict[int, np.ndarray]:
    """24 small generated faces by seed, from the sample's own real images."""
    table = index("test")
    rows = table.index[table["label"] == "real"][:24]
    decoded = (np.asarray(Image.open(io.BytesIO(image_bytes("test", row)))) for row in rows)
    return {i: cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA) for i, image in enumerate(decoded, start=1)}


@pytest.mark.parametrize("name", FACES)
def test_shards_are_what_the_manifest_says(name: str) -> None:
    shards = ShardSet.open(SAMPLE / name)
    for number, shard in enumerate(shards.shards):
        assert sha256_file(shards.shard_path(number)) == shard["sha256"]
    assert shards.split == PARTS[name].split
    assert shards.manifest["datasets"] == {PARTS[name].dataset: 2 * FACES[name]}
    assert shards.manifest["labels"] == {"real": FACES[name], "fake": FACES[name]}
    assert set(shards.manifest["methods"]) == {"pristine", *PARTS[name].methods}


@pytest.mark.parametrize("name", FACES)
def test_every_face_has_one_forgery_of_recorded_severity(name: str) -> None:
    table = index(name)
    real, fake = (table[table["label"] == label].set_index("generator_seed").sort_index() for label in ("real", "fake"))
    assert list(real.index) == list(fake.index)
    assert real.index.is_unique
    assert (real["severity"] == 0).all()
    assert fake["severity"].between(*make_sample.SEVERITIES).all()
    assert (fake["group"].str.split("|").str[0] == real["group"]).all()  # the forged face first, then the donor
    assert (fake["group"].str.contains("|", regex=False) == fake["method"].map(lambda m: METHODS[m].needs_donor)).all()


def test_no_face_is_in_two_sets() -> None:
    tables = pd.concat([index(name).assign(set=name) for name in FACES])
    assert (tables.groupby(components(tables["group"]))["set"].nunique() == 1).all()
    assert (tables.groupby("generator_seed")["set"].nunique() == 1).all()
    domain = tables[tables["dataset"] == "sample"]
    check_splits(domain.assign(split=domain["set"]))
    assert not tables["sha256"].duplicated().any()


def test_the_label_is_not_in_the_encoding() -> None:
    # one size, one quantisation (quality 90), one chroma subsampling: nothing about the file tells real from fake
    reference = Image.open(io.BytesIO(encode(np.zeros((224, 224, 3), np.uint8), "JPEG", 90)))
    for row, label in enumerate(index("unseen")["label"][:40]):
        image = Image.open(io.BytesIO(image_bytes("unseen", row)))
        assert image.size == (224, 224), label
        assert image.quantization == reference.quantization, label
        assert image.layer == reference.layer, label


def test_the_sample_is_small_and_says_what_it_is() -> None:
    size = sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file())
    assert size < 9e6
    text = (SAMPLE / "README.md").read_text()
    for phrase in ("belong to nobody", "no scientific result", "Apache-2.0", "random-face"):
        assert phrase in text
    for name, count in FACES.items():
        assert f"| {count} | {2 * count} | {count} |" in next(
            line for line in text.splitlines() if f"`{name}/`" in line
        )


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_image_forged_twice_is_equal(method: str) -> None:
    image, donor = (np.asarray(Image.open(io.BytesIO(image_bytes("test", row)))) for row in (0, 1))
    first, again = (forge(method, image, 0.7, rng_for(0, "face", method, 0.7), donor) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, image)


def test_building_twice_gives_the_same_sets_without_leaks(faces: dict[int, np.ndarray], tmp_path: Path) -> None:
    build(faces, tmp_path / "a", seed=3)
    build(dict(reversed(faces.items())), tmp_path / "b", seed=3)
    tables = []
    for name in PARTS:
        first, again = (ShardSet.open(tmp_path / copy / name) for copy in "ab")
        assert first.digest == again.digest
        tables.append(pd.read_parquet(first.index_path).assign(set=name))
    table = pd.concat(tables)
    assert len(table) == 2 * len(faces)
    assert (table.groupby(components(table["group"]))["set"].nunique() == 1).all()


def test_faces_are_paired_with_the_most_alike() -> None:
    # Flat pictures: the distance is the difference of their grey. 10-12 is nearest, then 50-60; 200 and 90 are left.
    greys = {1: 10, 2: 200, 3: 12, 4: 50, 5: 60, 6: 90}
    pictures = {face: np.full((32, 32, 3), grey, np.uint8) for face, grey in greys.items()}
    assert pair_alike(pictures) == {1: 3, 3: 1, 4: 5, 5: 4, 2: 6, 6: 2}


def test_too_few_faces_and_an_occupied_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="faces=19"):
        make_sample.make_sample(SampleConfig(str(tmp_path / "out"), faces=19))
    (tmp_path / "something").touch()
    with pytest.raises(InputError, match="is not empty"):
        make_sample.make_sample(SampleConfig(str(tmp_path)))


def test_without_the_generator_the_command_names_the_remedy(tmp_path: Path) -> None:
    # the generator hidden, as on a machine that never installed it: the search for the module finds nothing
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'random_face' else find(name, *rest)\n"
        "from data_shards.command import run; from data_shards.make_sample import SampleConfig, make_sample\n"
        f"run(SampleConfig, make_sample, ['out={tmp_path / 'out'}'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "pip install -e '.[sample]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
