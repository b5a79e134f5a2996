"""What the reader makes of JPEG, PNG and WebP files: the pixels of Pillow, or a refusal."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data_shards.loader import evaluation_batches
from data_shards.reader import CorruptSample, SampleReader
from tests.data_shards.by_hand import SIZE, encoded, picture, write_set


def jpegs() -> dict[str, bytes]:
    kinds = {}
    for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
        for progressive in (False, True):
            options = {"subsampling": subsampling, "progressive": progressive, "quality": 87}
            kinds[f"{subsampling} progressive={progressive}"] = encoded(picture(1, (61, 61)), **options)
    kinds["grayscale"] = encoded(picture(2, (61, 61)).convert("L"))
    kinds["CMYK"] = encoded(picture(3, (61, 61)).convert("CMYK"))
    kinds["RGB, no YCbCr"] = encoded(picture(4, (61, 61)), keep_rgb=True)
    kinds["low quality"] = encoded(picture(5, (61, 61)), quality=5)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees": ignored, as by Image.open
    kinds["EXIF orientation"] = encoded(picture(6, (61, 61)), exif=exif)
    kinds["bytes after the end"] = encoded(picture(7, (61, 61))) + b"appended"
    return kinds


@pytest.mark.parametrize("kind", jpegs())
@pytest.mark.parametrize("size", [61, 32])
def test_jpeg_pixels_are_pillows(kind, size, tmp_path):
    data = jpegs()[kind]
    reader = SampleReader(write_set(tmp_path / "set", [[data]]), image_size=size)
    out = np.zeros((size, size, 3), np.uint8)
    reader.decode_into(0, out)
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(out, np.asarray(expected))
    assert reader.read(0) == data
    reader.close()


@pytest.mark.assets
@pytest.mark.parametrize("dataset", ["dfdc", "stylegan"])
def test_real_faces_are_decoded_as_by_pillow(dataset, tmp_path):
    faces = Path(__file__).resolve().parents[3] / "shared" / "assets" / "faces"
    if not (faces / "faces.csv").exists():
        pytest.skip("there are no real faces beside the checkout")
    table = pd.read_csv(faces / "faces.csv")
    paths = table[table["dataset"] == dataset]["path"].sample(150, random_state=0)
    images = [(faces / path).read_bytes() for path in paths]
    shards = write_set(tmp_path / "set", [images[:70], images[70:]])
    for batch in evaluation_batches(shards, batch_size=50, image_size=224):
        for index, pixels in zip(batch.index.tolist(), batch.images.numpy(), strict=True):
            image = Image.open(io.BytesIO(images[index])).convert("RGB")
            np.testing.assert_array_equal(pixels, np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_png_and_webp_by_pillow(format, mode, tmp_path):
    data = encoded(picture(1, (20, 20)).convert(mode), format)
    reader = SampleReader(write_set(tmp_path / "set", [[data]], format.lower()), image_size=20)
    out = np.zeros((20, 20, 3), np.uint8)
    reader.decode_into(0, out)
    np.testing.assert_array_equal(out, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("stored", [(40, 40), (20, 20), (45, 30)])
def test_resizing_is_timms_evaluation_transform(stored, tmp_path):
    from timm.data import create_transform

    data = encoded(picture(1, stored))
    reader = SampleReader(write_set(tmp_path / "set", [[data]]), image_size=32)
    out = np.zeros((32, 32, 3), np.uint8)
    reader.decode_into(0, out)
    transform = create_transform(
        (3, 32, 32), interpolation="bicubic", crop_pct=1.0, crop_mode="squash", normalize=False
    )
    expected = torch.as_tensor(transform(Image.open(io.BytesIO(data)))).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(out, expected)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_are_refused_from_the_header(tmp_path, monkeypatch):
    flat = Image.new("RGB", (12_000, 12_000))  # 144 Mpixel in half a megabyte
    shards = write_set(tmp_path / "png", [[encoded(flat.convert("1"), "PNG")], [encoded(flat.convert("L"))]], "png")
    reader = SampleReader(shards, image_size=SIZE)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.Image.Image.convert", lambda *_: pytest.fail("decoded"))
    for index in (0, 1):
        with pytest.raises(CorruptSample, match="12000 x 12000 pixels are more than max_pixels"):
            reader.decode_into(index, np.zeros((SIZE, SIZE, 3), np.uint8))


def test_deep_images_are_refused_rather_than_clipped(tmp_path):
    deep = encoded(Image.fromarray(np.full((SIZE, SIZE), 40_000, np.uint16)), "PNG")
    reader = SampleReader(write_set(tmp_path / "set", [[deep]], "png"), image_size=SIZE)
    with pytest.raises(CorruptSample, match="more than 8 bits"):
        reader.decode_into(0, np.zeros((SIZE, SIZE, 3), np.uint8))


def test_more_shards_than_open_files(sets, monkeypatch):
    monkeypatch.setattr("data_shards.reader.OPEN_FILES", 2)
    shards = sets["more than a window"]
    reader = SampleReader(shards, image_size=SIZE)
    for index in np.random.default_rng(0).permutation(shards.samples):
        reader.decode_into(int(index), np.zeros((SIZE, SIZE, 3), np.uint8))
        assert len(reader._files) <= 2
