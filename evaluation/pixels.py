"""Plain statistics of the pixels: the control that any backbone should beat.

If colour, sharpness or JPEG traces alone separate real from fake, a data set can be told apart without looking at
faces, and separability in deep features proves little.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

BANDS = 8  # of spatial frequency, up to Nyquist
GRID = 8  # JPEG codes blocks of 8 by 8 pixels

NAMES = (
    *(f"{moment} {channel}" for moment in ("mean", "sd", "skewness") for channel in ("red", "green", "blue")),
    *("brightness", "contrast", "saturation"),
    *("log Laplacian variance", "log gradient energy"),
    *(f"log power, band {band} of {BANDS}" for band in range(1, BANDS + 1)),
    *(f"{axis} step at phase {phase}" for axis in ("horizontal", "vertical") for phase in range(GRID)),
)


def pixel_features(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """``(n, 38)`` float32 features of RGB images ``(h, w, 3)`` uint8, standardised over the images; see ``NAMES``.

    They go into :func:`evaluation.separability.separability` like the features of a backbone. A statistic that is the
    same in all images becomes 0. Raises ValueError for anything but RGB uint8 of at least 16 by 16 pixels.
    """
    rows = np.array([pixel_statistics(image) for image in images])
    if not len(rows):
        raise ValueError("pixel features of no images")
    spread = rows.std(axis=0)
    flat = spread <= 1e-9 * (1 + np.abs(rows).max(axis=0))
    return np.where(flat, 0, (rows - rows.mean(axis=0)) / np.where(flat, 1, spread)).astype(np.float32)


def pixel_statistics(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``(38,)``: colour moments, sharpness, power spectrum and JPEG grid of one image, in the order of ``NAMES``."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 2 * GRID:
        raise ValueError(f"an image must be (h, w, 3) uint8 of at least 16 x 16, got {image.shape} {image.dtype}")
    colour = image.astype(np.float64) / 255
    grey = colour @ [0.299, 0.587, 0.114]
    return np.concatenate([_colour(colour, grey), _sharpness(grey), _spectrum(grey), _grid(grey.T), _grid(grey)])


LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def jpeg_quality(table: ArrayLike) -> float:
    """Quality 1 … 100 at which libjpeg would have written the luminance table ``(64,)``, in any order; for other tables
    a number that falls as their steps grow. Source: ITU-T T.81, annex K.1, scaled as by libjpeg's jcparam.c."""
    small = len(LUMINANCE) // 2  # large steps are cut at 255
    scale = 100 * np.sort(np.asarray(table))[:small].sum() / np.sort(LUMINANCE)[:small].sum()
    return float(np.clip((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1, 100))


def _colour(colour: NDArray[np.float64], grey: NDArray[np.float64]) -> NDArray[np.float64]:
    channels = np.ascontiguousarray(colour.reshape(-1, 3).T)
    mean, sd = channels.mean(axis=1), channels.std(axis=1)
    moved = channels - mean[:, None]
    skewness = np.mean(moved * moved * moved, axis=1) / np.maximum(sd, 1e-3) ** 3
    saturation = np.mean(np.max(channels, axis=0) - np.min(channels, axis=0))
    return np.concatenate([mean, sd, skewness, [grey.mean(), grey.std(), saturation]])


def _sharpness(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    energy = np.mean(np.diff(grey, axis=0) ** 2) + np.mean(np.diff(grey, axis=1) ** 2)
    return np.log([laplacian.var() + 1e-8, energy + 1e-8])


def _spectrum(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the mean power in rings of equal width; a Hann window keeps the borders out."""
    window, ring, count = _rings(*grey.shape)
    spectrum = np.fft.rfft2((grey - grey.mean()) * window)
    power = (spectrum.real**2 + spectrum.imag**2) / np.sum(window**2)
    total = np.bincount(ring, power.ravel(), minlength=BANDS + 1)[:BANDS]
    return np.log(total / np.maximum(count, 1) + 1e-8)


@functools.lru_cache(maxsize=16)
def _rings(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Window, ring of each frequency, and size of each ring, for images of one size."""
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in (height, width)))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij"))
    ring = np.minimum((radius / 0.5 * BANDS).astype(int), BANDS).ravel()  # corners beyond Nyquist are left out
    return window, ring, np.bincount(ring, minlength=BANDS + 1)[:BANDS]


def _grid(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(8,)``: third differences across rows by their phase in blocks of eight, relative to their mean.

    Blocks of 8 by 8 that start at the corner raise the phase 7, between pixels 7 and 8; a crop moves the peak.
    """
    step = np.abs(grey[:-3] - 3 * grey[1:-2] + 3 * grey[2:-1] - grey[3:]).mean(axis=1)  # between rows i+1 and i+2
    phase = (np.arange(len(step)) + 1) % GRID
    profile = np.bincount(phase, step, minlength=GRID) / np.bincount(phase, minlength=GRID)
    return profile / (profile.mean() + 1e-8) - 1
