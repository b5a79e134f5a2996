import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evaluation.pixels import NAMES, jpeg_quality, pixel_features, pixel_statistics


def scene(seed=0, side=96):
    """A smooth random scene with some noise, as uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)


def named(image):
    return dict(zip(NAMES, pixel_statistics(image), strict=True))


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_colour_moments_by_hand():
    # Half of the pixels (255, 0, 51), half black. Red: mean 1/2, sd 1/2, no skew. Blue: mean .1, sd .1.
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = (255, 0, 51)
    found = named(image)
    assert [found[f"mean {c}"] for c in ("red", "green", "blue")] == pytest.approx([0.5, 0, 0.1])
    assert [found[f"sd {c}"] for c in ("red", "green", "blue")] == pytest.approx([0.5, 0, 0.1])
    assert found["skewness red"] == pytest.approx(0)
    assert found["brightness"] == pytest.approx((0.299 + 0.114 * 0.2) / 2)
    assert found["saturation"] == pytest.approx(0.5)


def test_blur_lowers_sharpness_and_high_frequencies():
    image = scene()
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))
    sharp, soft = named(image), named(blurred)
    assert soft["log Laplacian variance"] < sharp["log Laplacian variance"] - 2
    assert soft["log power, band 7 of 8"] < sharp["log power, band 7 of 8"] - 2
    assert soft["log power, band 1 of 8"] == pytest.approx(sharp["log power, band 1 of 8"], abs=0.3)


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_jpeg_leaves_its_grid_and_a_crop_moves_it(axis):
    coded = jpeg(scene(), quality=20)
    steps = [named(coded)[f"{axis} step at phase {phase}"] for phase in range(8)]
    assert np.argmax(steps) == 7  # between pixels 7 and 8
    moved = [named(coded[3:, 3:])[f"{axis} step at phase {phase}"] for phase in range(8)]
    assert np.argmax(moved) == 4
    plain = [named(scene())[f"{axis} step at phase {phase}"] for phase in range(8)]
    assert max(steps) > 3 * max(plain)


def test_features_are_standardised_and_constant_ones_zero():
    features = pixel_features(scene(seed) for seed in range(20))
    assert features.shape == (20, len(NAMES))
    assert features.dtype == np.float32
    assert features.mean(axis=0) == pytest.approx(np.zeros(len(NAMES)), abs=1e-5)
    assert features.std(axis=0) == pytest.approx(np.ones(len(NAMES)), abs=1e-4)
    assert not pixel_features([scene(0)] * 3).any()
    assert np.isfinite(pixel_features([np.zeros((16, 20, 3), np.uint8), scene()])).all()


@pytest.mark.parametrize("image", [np.zeros((8, 32, 3), np.uint8), np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3))])
def test_other_arrays_are_errors(image):
    with pytest.raises(ValueError, match="uint8"):
        pixel_features([image])


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        pixel_features([])


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_quality_is_read_back_from_the_table(quality):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        assert jpeg_quality(image.quantization[0]) == pytest.approx(quality, abs=1)
