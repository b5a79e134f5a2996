"""Frozen features: aligned with the samples, complete, never computed twice."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_shards.command import InputError
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample
from tests.trainer.launching import error_line
from trainer import features as module
from trainer.backbones import create_backbone, get_card
from trainer.features import extract, read_features
from trainer.preprocess import normalize


@pytest.fixture
def shards(toy_sets) -> ShardSet:
    """22 faces of 32 px."""
    return ShardSet.open(toy_sets["validation"])


@pytest.fixture(params=["tiny_vit", "tiny_resnet"])
def card(request, tiny_cards):
    return get_card(request.param, tiny_cards)


def images_of(shards: ShardSet) -> list[np.ndarray]:
    """The pixels of every sample in the order of the index, read with tarfile and PIL instead of our loader."""
    images = []
    for shard in range(len(shards.shards)):
        with tarfile.open(shards.shard_path(shard)) as tar:
            for key, extension in zip(shards.column("key", shard), shards.column("extension", shard), strict=True):
                data = tar.extractfile(f"{key}.{extension.lstrip('.')}").read()
                images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return images


def test_normalisation_by_hand(tiny_cards):
    card = get_card("tiny_vit", tiny_cards)  # mean and std 0.5: pixel 255 → (1 - 0.5) / 0.5 = 1, pixel 0 → -1
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    pixels[1, 4, 5] = torch.tensor([255, 51, 0], dtype=torch.uint8)  # 51 / 255 = 0.2 → -0.6
    result = normalize(pixels, card)
    assert result.shape == (2, 3, 32, 32)
    torch.testing.assert_close(result[1, :, 4, 5], torch.tensor([1.0, -0.6, -1.0]))
    assert (result[0] == -1).all()
    half = normalize(pixels, card, dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"needs images as torch.uint8 \(b, 32, 32, 3\)"):
        normalize(pixels[:, :16], card)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        normalize(pixels.float(), card)


def test_each_row_is_the_feature_of_its_own_sample(card, shards, tmp_path):
    result = read_features(extract(card, shards, tmp_path, batch_size=5))
    backbone = create_backbone(card).eval()
    with torch.inference_mode():
        expected = [backbone(normalize(torch.tensor(image)[None], card))[0].numpy() for image in images_of(shards)]
    np.testing.assert_allclose(result.features, expected, atol=1e-5)
    assert np.abs(result.features[0] - result.features[1]).max() > 1e-3  # so that a mix-up would show
    assert result.features.dtype == np.float32
    assert result.index.tolist() == list(range(22))
    assert result.label.dtype == np.uint8
    assert result.label.tolist() == [int(label == "fake") for label in shards.column("label")]
    for name in ("group", "method", "dataset"):
        assert getattr(result, name).tolist() == shards.column(name).tolist()
    assert result.provenance["card"]["name"] == card.name
    assert result.provenance["weights_sha256"] == backbone.weights_sha256
    assert result.provenance["shards_digest"] == shards.digest


def test_batch_size_does_not_matter(card, shards, tmp_path):
    one, sixteen = (read_features(extract(card, shards, tmp_path / str(b), batch_size=b)) for b in (1, 16))
    np.testing.assert_allclose(one.features, sixteen.features, atol=1e-5)


def test_the_same_inputs_are_never_extracted_twice(card, shards, tmp_path, monkeypatch):
    path = extract(card, shards, tmp_path)
    variants = {
        extract(card, shards, tmp_path, initialisation="random"),
        extract(card, shards, tmp_path, initialisation="random", seed=1),
        extract(card, shards, tmp_path, precision="bf16"),
    }
    assert path not in variants
    assert len(variants) == 3
    assert len(list(tmp_path.iterdir())) == 4
    assert path.name.startswith(f"{card.name}--validation--")
    assert {name.name.split("--")[0] for name in variants} == {
        card.name,
        f"{card.name}-random-s0",
        f"{card.name}-random-s1",
    }
    moved = shutil.copytree(shards.path, tmp_path / "elsewhere" / "copy")

    def fail(*_, **__):
        raise AssertionError("extracted again")

    monkeypatch.setattr(module, "_compute", fail)
    assert extract(card, shards, tmp_path, batch_size=3, threads=1) == path
    assert extract(card, ShardSet.open(moved), tmp_path) == path
    with pytest.raises(AssertionError, match="extracted again"):
        extract(card, shards, tmp_path, initialisation="random", seed=2)


def test_other_shards_and_other_normalisation_are_other_features(tiny_cards, toy_sets, shards, tmp_path):
    card = get_card("tiny_vit", tiny_cards)
    other = tiny_cards.with_name("other.yaml")
    other.write_text(tiny_cards.read_text().replace("mean: [0.5, 0.5, 0.5]", "mean: [0.5, 0.5, 0.4]"))
    paths = {
        extract(card, shards, tmp_path),
        extract(card, ShardSet.open(toy_sets["test"]), tmp_path),
        extract(get_card("tiny_vit", other), shards, tmp_path),
    }
    assert len(paths) == 3


def rewrite(path, change) -> None:
    """The features file with its table changed."""
    pq.write_table(change(pq.read_table(path)), path)


def set_nan(table: pa.Table) -> pa.Table:
    vectors = table.column("features").combine_chunks()
    values = vectors.values.to_numpy().copy()
    values[3 * vectors.type.list_size] = np.nan
    return table.set_column(0, "features", pa.FixedSizeListArray.from_arrays(values, vectors.type.list_size))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 21), "do not cover every one of the 22 samples exactly once"),
        (lambda table: table.take([*range(21), 0]), "do not cover"),
        (lambda table: table.take([1, 0, *range(2, 22)]), "do not cover"),
        (set_nan, "1 samples have features that are not finite, the first 3"),
        (lambda table: table.drop_columns(["method"]), "not a features file"),
        (lambda table: table.replace_schema_metadata({}), "not a features file"),
    ],
    ids=["lost", "twice", "swapped", "nan", "column", "provenance"],
)
def test_incomplete_features_are_refused(tiny_cards, shards, tmp_path, change, message):
    card = get_card("tiny_vit", tiny_cards)
    path = extract(card, shards, tmp_path)
    rewrite(path, change)
    with pytest.raises(InputError, match=message):
        read_features(path)
    with pytest.raises(InputError, match="delete it and extract again"):
        extract(card, shards, tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="there is no features file"):
        read_features(path)


def test_nothing_is_written_when_a_sample_is_bad(tiny_cards, shards, tmp_path):
    broken = shutil.copytree(shards.path, tmp_path / "broken")
    offset = int(shards.column("offset", 0)[4])
    with open(broken / shards.shards[0]["file"], "r+b") as file:
        file.seek(offset + 30)
        file.write(b"\0" * 8)
    with pytest.raises(CorruptSample):
        extract(get_card("tiny_vit", tiny_cards), ShardSet.open(broken), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_features_that_are_not_finite_are_not_written(tiny_cards, shards, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_cards.with_name("tiny_vit.safetensors"))
    state["norm.bias"][0] = torch.inf
    save_file(state, tmp_path / "tiny_vit.safetensors")
    with pytest.raises(InputError, match="22 samples have features that are not finite"):
        extract(get_card("tiny_vit", tiny_cards), shards, tmp_path / "out", weights_dir=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stopped(card, shards, tmp_path, monkeypatch):
    """Function (batch) → sizes of the batches that an extraction computes which is asked to stop before that one."""

    def run(batch: int) -> list[int]:
        computed = []

        def counted(images, *arguments, **options):
            if len(computed) == batch:
                raise SystemExit(85)
            computed.append(len(images))
            return normalize(images, *arguments, **options)

        with monkeypatch.context() as patched, pytest.raises(SystemExit) if batch < 6 else contextlib.nullcontext():
            patched.setattr("trainer.preprocess.normalize", counted)
            extract(card, shards, tmp_path, batch_size=4)
        return computed

    return run


@pytest.mark.parametrize("seconds", [0, 60])
def test_what_was_stopped_goes_on_and_ends_bit_equal(card, shards, tmp_path, stopped, monkeypatch, seconds):
    monkeypatch.setattr("trainer.parts.SECONDS", seconds)  # 0: a part for each batch; 60: one, at the request
    assert stopped(3) == [4, 4, 4]
    assert stopped(1) == [4]
    assert stopped(9) == [4, 2], "16 of 22 pictures were there"
    (path,) = tmp_path.iterdir()
    whole = extract(card, shards, tmp_path / "whole", batch_size=4)
    np.testing.assert_array_equal(read_features(path).features, read_features(whole).features)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", None])
def test_a_damaged_part_is_computed_again(card, shards, tmp_path, stopped, monkeypatch, content):
    monkeypatch.setattr("trainer.parts.SECONDS", 0)
    stopped(3)
    second = sorted(next(tmp_path.glob(".*.parts")).iterdir())[1]
    if content is None:
        np.save(second, np.zeros((4, 1), dtype=np.float32))  # of another shape
    else:
        second.write_bytes(content)
    assert stopped(9) == [4, 4, 4, 4, 2]
    (path,) = tmp_path.iterdir()
    whole = extract(card, shards, tmp_path / "whole", batch_size=4)
    np.testing.assert_array_equal(read_features(path).features, read_features(whole).features)


def test_wrong_options_name_the_remedy(tiny_cards, shards, tmp_path):
    card = get_card("tiny_vit", tiny_cards)
    with pytest.raises(InputError, match="precision must be fp32 or bf16"):
        extract(card, shards, tmp_path, precision="fp16")
    with pytest.raises(InputError, match="device 'gpu' cannot be used here"):
        extract(card, shards, tmp_path, device="gpu")


def command(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "trainer.features", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


def test_command_extracts_and_prints_the_path(tiny_cards, shards, tmp_path):
    done = command("backbone=tiny_vit", f"cards={tiny_cards}", f"shards={shards.path}", f"out={tmp_path}", "threads=1")
    assert done.returncode == 0, done.stderr
    result = read_features(done.stdout.strip())
    assert result.features.shape == (22, 64)
    assert json.dumps(result.provenance)
    assert "22 images of validation on" in done.stderr


def test_command_errors_are_one_line(shards):
    done = command("backbone=tiny_vi", f"shards={shards.path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert error_line(done.stderr).startswith("error: no backbone card 'tiny_vi'")
