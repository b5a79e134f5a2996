"""What happens to images on their way: compression, blur, loss of resolution, noise. For robustness curves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def jpeg(image: Image, quality: float, seed: int) -> Image:
    """Encoded and decoded again, chroma subsampled 4:2:0."""
    import simplejpeg

    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=round(quality), colorsubsampling="420")
    return simplejpeg.decode_jpeg(data)


def blur(image: Image, sigma: float, seed: int) -> Image:
    """Gaussian, ``sigma`` in pixels."""
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma)


def resize(image: Image, factor: float, seed: int) -> Image:
    """Made smaller by ``factor`` (area average) and brought back (bicubic)."""
    import cv2

    height, width = image.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height),
                      interpolation=cv2.INTER_CUBIC)  # fmt: skip


def noise(image: Image, sigma: float, seed: int) -> Image:
    """Gaussian, independent per pixel and channel, ``sigma`` as a share of the range of 255."""
    drawn = np.random.default_rng(seed).normal(0, 255 * sigma, image.shape)
    return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)


DEGRADATIONS: dict[str, tuple[Callable[[Image, float, int], Image], tuple[float, ...]]] = {
    "JPEG quality": (jpeg, (100, 90, 70, 50, 30, 10)),
    "blur, sigma": (blur, (0.5, 1, 2, 3)),
    "resize, factor": (resize, (0.75, 0.5, 0.25)),
    "noise, sigma": (noise, (0.02, 0.05, 0.1, 0.2)),
}
"""Name → function of (image (h, w, 3) uint8, level, seed) and its levels, mildest first."""


def degrade(images: Image, kind: str, level: float, index: NDArray[np.int64]) -> Image:
    """``(b, h, w, 3)`` uint8 RGB after one of ``DEGRADATIONS``; noise is drawn from each sample's ``index`` alone."""
    change = DEGRADATIONS[kind][0]
    return np.stack([change(image, level, int(number)) for image, number in zip(images, index, strict=True)])
