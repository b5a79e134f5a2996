import numpy as np
import pytest

from evaluation.degradations import DEGRADATIONS, degrade


def scene(side=64):
    """Two smooth images with some texture."""
    y, x = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(0)
    planes = np.stack([x, y, (x + y) / 2], axis=-1) * 200 + rng.normal(0, 12, (side, side, 3))
    image = np.clip(planes, 0, 255).astype(np.uint8)
    return np.stack([image, image[::-1]])


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_stronger_levels_change_more(kind):
    images, index = scene(), np.array([3, 4])
    changed = [degrade(images, kind, level, index) for level in DEGRADATIONS[kind][1]]
    errors = [np.mean((each.astype(float) - images) ** 2) for each in changed]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]
    assert all(each.shape == images.shape and each.dtype == np.uint8 for each in changed)


def test_noise_belongs_to_the_sample_not_to_the_batch():
    images = scene()
    both = degrade(images, "noise, sigma", 0.1, np.array([3, 4]))
    assert np.array_equal(both[1:], degrade(images[1:], "noise, sigma", 0.1, np.array([4])))
    # Clipping apart, the standard deviation is 25.5 levels.
    middle = np.full((1, 64, 64, 3), 128, np.uint8)
    assert degrade(middle, "noise, sigma", 0.1, np.array([0])).std() == pytest.approx(25.5, rel=0.02)
