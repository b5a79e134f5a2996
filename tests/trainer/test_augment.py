"""Augmentation: what each change does, and that it depends on seed, epoch and sample alone."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.augment import augment, change, draw
from trainer.jpeg import compress

MANY = 40_000


@pytest.fixture(scope="module")
def images():
    """Eight smooth pictures with some noise, 48 x 64."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(image).resize((64, 48), Image.BICUBIC)) for image in coarse])
    return torch.from_numpy((smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))


def only(images, **numbers):
    """The images after these changes, of all images alike, and no others."""
    n = len(images)
    nothing = draw(np.arange(n), np.zeros(n, int), seed=0, flip=False, strength=0)
    return change(images, nothing._replace(**{name: np.full(n, value) for name, value in numbers.items()})).numpy()


def sharpness(images):
    """Mean square of the difference of neighbours."""
    return (np.diff(images.astype(float), axis=2) ** 2).mean()


# --- what is drawn


def test_every_cut_into_batches_gives_the_same_bits(images):
    index, epoch = np.array([5, 6, 7, 5, 9, 11, 10**12, 13]), np.array([0, 0, 0, 1, 2, 2, 2, 2])
    options = {"seed": 1, "flip": True, "strength": 1.0}
    whole = augment(images, index, epoch, **options)
    rng = np.random.default_rng(0)
    for _ in range(10):  # other orders and cuts: other ranks, another batch size, a resumed run
        order = rng.permutation(8)
        for part in np.split(order, np.sort(rng.choice(np.arange(1, 8), 3, replace=False))):
            assert torch.equal(augment(images[part], index[part], epoch[part], **options), whole[part])


def test_seed_epoch_and_index_each_give_another_picture(images):
    same = images[:1].repeat(4, 1, 1, 1)
    index, epoch = np.array([5, 6, 5, 6]), np.array([0, 0, 1, 1])
    one, other = (augment(same, index, epoch, seed=seed, flip=False, strength=1.0) for seed in (1, 2))
    assert len({picture.numpy().tobytes() for picture in (*one, *other)}) == 8


def test_draws_are_as_often_and_as_large_as_promised():
    strength = 0.6
    drawn = draw(np.arange(MANY), np.zeros(MANY, int), seed=0, flip=True, strength=strength)
    # 4 standard deviations of a binomial share are at most 4 sqrt(0.25 / 40,000) = 0.01.
    shares = {"mirror": (0, 0.5), "blur": (0, 0.15), "noise": (0, 0.15), "scale": (1, 0.15), "quality": (0, 0.3)}
    for name, (none, share) in shares.items():
        assert np.mean(getattr(drawn, name) != none) == pytest.approx(share, abs=0.01), name
    # The largest of 6,000 and more uniform numbers misses its bound by 0.0017 with a chance of e^-10.
    assert drawn.blur.max() == pytest.approx(2 * strength, rel=0.01)
    assert drawn.noise.max() == pytest.approx(12 * strength, rel=0.01)
    assert drawn.scale.min() == pytest.approx(1 - 0.75 * strength, rel=0.01)
    quality = drawn.quality[drawn.quality > 0]
    assert (quality.min(), quality.max()) == (95 - 36, 95)
    assert drawn.gain.max() == pytest.approx(1.24 * 1.24 * 1.12, rel=0.05)
    # Uncorrelated with each other and from one index to the next: 4 / sqrt(40,000) = 0.02.
    columns = np.stack([drawn.gain[:, 0], drawn.mirror, drawn.blur, drawn.scale, drawn.noise, drawn.quality])
    correlations = np.corrcoef(np.concatenate([columns[:, 1:], columns[:, :-1]]))
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.025


# --- what is done


def test_strength_zero_is_identity_and_flip_mirrors_half(images):
    index, epoch = np.arange(8), np.zeros(8, int)
    assert augment(images, index, epoch, seed=0, flip=False, strength=0) is images
    many = images[:1, :4, :4].repeat(400, 1, 1, 1)
    out = augment(many, np.arange(400), np.zeros(400, int), seed=0, flip=True, strength=0)
    mirrored = (out == many.flip(2)).flatten(1).all(1)
    assert (mirrored ^ (out == many).flatten(1).all(1)).all()
    assert 160 <= mirrored.sum() <= 240  # binomial(400, 1/2): 4 standard deviations are 40
    before = images.clone()
    augment(images, index, epoch, seed=0, flip=True, strength=1.0)
    assert torch.equal(images, before)


def test_tone_by_hand():
    image = torch.tensor([10, 20, 30, 100], dtype=torch.uint8).view(1, 2, 2, 1).repeat(1, 1, 1, 3)
    # The mean is 40. Contrast 2: 2 (x - 40) + 40 = 2 x - 40, cut off at 0; then the channel's cast.
    gain, pivot = np.array([[2.0, 2.0, 1.0]]), np.array([[-1.0, -1.0, -0.5]])  # the last channel at half
    nothing = draw(np.zeros(1, int), np.zeros(1, int), seed=0, flip=False, strength=0)
    out = change(image, nothing._replace(gain=gain, pivot=pivot))
    assert out[..., 0].flatten().tolist() == [0, 0, 20, 160]
    assert out[..., 2].flatten().tolist() == [0, 0, 10, 80]


def test_blur_is_the_gaussian_of_its_width():
    point = torch.zeros(2, 31, 31, 3, dtype=torch.uint8)
    point[:, 15, 15] = 255
    nothing = draw(np.arange(2), np.zeros(2, int), seed=0, flip=False, strength=0)
    out = change(point, nothing._replace(blur=np.array([0.8, 1.6]))).double()[..., 0]
    across = (torch.arange(31) - 15.0) ** 2
    for spot, sigma in zip(out, (0.8, 1.6), strict=True):
        # Rounding to whole levels moves the second moment a little.
        assert float((spot.sum(0) * across).sum() / spot.sum()) == pytest.approx(sigma**2, rel=0.1)
        assert torch.equal(spot, spot.T)


def test_down_scaling_takes_detail_and_leaves_the_mean(images):
    fine = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8))
    half, quarter = only(fine, scale=0.5), only(fine, scale=0.25)
    # A quarter of the numbers is left, and each is spread over its neighbours.
    assert sharpness(fine.numpy()) > 4 * sharpness(half) > 16 * sharpness(quarter)
    smooth = images.numpy()
    np.testing.assert_allclose(only(images, scale=0.5).mean((1, 2)), smooth.mean((1, 2)), atol=0.5)
    assert np.abs(only(images, scale=0.9).astype(int) - smooth).mean() < 6


def test_noise_has_its_deviation_and_differs_between_images():
    grey = torch.full((2, 64, 64, 3), 128, dtype=torch.uint8)
    nothing = draw(np.arange(2), np.zeros(2, int), seed=0, flip=False, strength=0)
    noise = change(grey, nothing._replace(noise=np.full(2, 6.0), window=np.array([7, 10**6]))).double() - 128
    # 12,288 values: the deviation of the deviation is 6 / sqrt(2 x 12,288) = 0.04, that of the mean 0.05.
    assert noise.flatten(1).std(1).numpy() == pytest.approx(np.sqrt(36 + 1 / 12), abs=0.2)
    assert noise.flatten(1).mean(1).numpy() == pytest.approx(0, abs=0.25)
    assert abs(np.corrcoef(noise.flatten(1).numpy())[0, 1]) < 0.04


@pytest.mark.parametrize("size", [(48, 64), (45, 50)])
@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_is_that_of_libjpeg(images, quality, size):
    images = images[:, : size[0], : size[1]]
    ours = only(images, quality=quality).astype(float)
    real = []
    for image in images.numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        real.append(np.asarray(Image.open(file), float))
    error, loss = (((x - np.stack(real)) ** 2).mean() for x in (ours, images.numpy()))
    assert 10 * np.log10(255**2 / error) > 40
    assert error < loss / 4


def test_jpeg_has_a_quality_for_each_image(images):
    planes = images.permute(0, 3, 1, 2).float()
    both = compress(planes[:2], np.array([20, 90]))
    assert torch.equal(both[1:], compress(planes[1:2], np.array([90])))
    assert torch.equal(both[:1], compress(planes[:1], np.array([20])))
