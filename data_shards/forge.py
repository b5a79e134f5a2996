"""Controlled forgeries: one face image in, one forged image out, with a severity from 0 (untouched) to 1 (strongest).

Every method is ``f(image, severity, rng[, donor]) -> image`` on uint8 RGB arrays of shape (height, width, 3). Severity
0 returns the input bit for bit; the mean change inside the forged region rises with the severity. No landmarks are
needed: the face is expected upright and centred, as face croppers leave it.

- ``self-blend``: the face blended with a jittered copy of itself (after Shiohara and Yamasaki, "Detecting Deepfakes
  with Self-Blended Images", CVPR 2022; there with landmark masks).
- ``swap``: the inner face of a donor after colour transfer (Reinhard et al., "Color Transfer between Images", IEEE
  CG&A 2001) and gradient-domain cloning (Perez et al., "Poisson Image Editing", SIGGRAPH 2003), mixed in by severity.
  Nothing is warped: crops need one common alignment, else noses land on cheeks.
- ``resample``: the inner face scaled down and up again, as generators of low resolution leave it.

They are instruments with a known dose, not a stand-in for the manipulations of a published data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# Inner face in a centred crop, as fractions of width and height: between brows and chin, between the cheeks.
CENTRE = np.array([0.5, 0.58])
HALF_AXES = np.array([0.21, 0.27])


@dataclass(frozen=True)
class Method:
    """A forgery method: its function and whether it takes the image of another person."""

    function: Callable[..., np.ndarray]
    needs_donor: bool = False


def forge(
    method: str, image: np.ndarray, severity: float, rng: np.random.Generator, donor: np.ndarray | None = None
) -> np.ndarray:
    """Forge ``image`` (uint8 RGB, (height, width, 3)) by a method of ``METHODS``; ``donor`` may have another size.

    Raises ValueError for an unknown method, a severity outside [0, 1], another kind of array or a missing donor.
    """
    if method not in METHODS:
        raise ValueError(f"unknown forgery method {method!r}; known: {', '.join(METHODS)}")
    if not 0 <= severity <= 1:
        raise ValueError(f"severity {severity} is not in [0, 1]")
    for array in (image, donor) if METHODS[method].needs_donor else (image,):
        if array is None:
            raise ValueError(f"{method} needs a donor image")
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"expected a uint8 array (height, width, 3), got {array.dtype} {array.shape}")
    if METHODS[method].needs_donor:
        return METHODS[method].function(image, severity, rng, donor)
    return METHODS[method].function(image, severity, rng)


def rng_for(seed: int, path: str, method: str, severity: float) -> np.random.Generator:
    """The random generator of one forgery: it depends on what is forged, never on the order of the work."""
    name = f"{seed}|{path}|{method}|{float(severity)!r}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))


def face_mask(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A soft random mask over the inner face: float32 (height, width) in [0, 1], an ellipse under elastic deformation.

    Every method draws its mask first, so the same generator state gives the region that was forged.
    """
    height, width = shape
    size = np.array([width, height])
    centre = (CENTRE + rng.uniform(-0.02, 0.02, 2)) * size
    axes = HALF_AXES * rng.uniform(0.85, 1.15, 2) * size
    mask = np.zeros(shape, np.float32)
    box = (centre.tolist(), (2 * axes).tolist(), rng.uniform(-10, 10))
    cv2.ellipse(mask, box, 1.0, thickness=-1)

    reach, smooth = 0.05 * min(shape), 0.07 * min(shape)
    noise = rng.uniform(-1, 1, (2, height, width)).astype(np.float32)
    shifts = [cv2.GaussianBlur(layer, (0, 0), smooth) for layer in noise]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    shift_x, shift_y = (reach * shift / max(np.abs(shift).max(), 1e-6) for shift in shifts)
    mask = cv2.remap(mask, columns + shift_x, rows + shift_y, cv2.INTER_LINEAR)
    return cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.015, 0.04) * min(shape))


def self_blend(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The face over a copy of itself whose colour, scale, place and sharpness differ slightly."""
    if severity == 0:
        return image.copy()
    height, width = image.shape[:2]
    mask = face_mask((height, width), rng)
    copy = image.astype(np.float32)

    scale = 1 + 0.06 * severity * _signed(rng)
    affine = cv2.getRotationMatrix2D((width / 2, height * CENTRE[1]), 2 * severity * _signed(rng), scale)
    affine[:, 2] += 0.02 * severity * _signed(rng, 2) * (width, height)
    copy = cv2.warpAffine(copy, affine, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)

    blurred = cv2.GaussianBlur(copy, (0, 0), 0.008 * min(height, width))
    sharpen = rng.random() < 0.5
    copy += severity * (0.6 if sharpen else -0.5) * (copy - blurred)

    contrast, shift = 1 + 0.08 * severity * _signed(rng), 6 * severity * (_signed(rng, 3) + _signed(rng))
    copy = (copy - 128) * contrast + 128 + shift
    return _blend(image, copy, mask)


def swap(image: np.ndarray, severity: float, rng: np.random.Generator, donor: np.ndarray) -> np.ndarray:
    """The donor's inner face in place of the face's own; ``severity`` is the share of the donor in the mixture."""
    if severity == 0:
        return image.copy()
    height, width = image.shape[:2]
    mask = face_mask((height, width), rng)
    if donor.shape != image.shape:
        donor = cv2.resize(donor, (width, height), interpolation=cv2.INTER_AREA)
    donor = transfer_colour(_facing_alike(donor, image), image, mask)

    # Poisson cloning wants a hard mask that leaves the border free, and the middle of its box as the place to put it.
    hard = np.where(mask > 0.3, 255, 0).astype(np.uint8)
    hard[[0, 1, -2, -1], :] = hard[:, [0, 1, -2, -1]] = 0
    x, y, box_width, box_height = cv2.boundingRect(hard)
    cloned = cv2.seamlessClone(donor, image, hard, (x + box_width // 2, y + box_height // 2), cv2.NORMAL_CLONE)
    # Where the seam runs through hair or background, cloning tints the whole face: bring the skin's colour back.
    cloned = transfer_colour(cloned, image, mask)
    return _blend(image, cloned.astype(np.float32), severity * np.clip(mask / 0.7 - 0.3 / 0.7, 0, 1))


def resample(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The inner face at a lower resolution: down by a factor of 1 to 3 (area), up again (bicubic)."""
    if severity == 0:
        return image.copy()
    height, width = image.shape[:2]
    mask = face_mask((height, width), rng)
    factor = 1 + 2 * severity
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    low = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return _blend(image, cv2.resize(low.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC), mask)


def transfer_colour(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``source`` with the mean and spread of each Lab channel of ``target``, both taken under ``mask`` (Reinhard 2001;
    CIELAB in place of the paper's l-alpha-beta). Images uint8 RGB of one size, mask float (height, width)."""
    weight = (mask / max(mask.sum(), 1e-6))[..., None]

    def moments(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = (weight * lab).sum((0, 1))
        return mean, np.sqrt((weight * (lab - mean) ** 2).sum((0, 1)))

    source_lab, target_lab = (
        cv2.cvtColor(array.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for array in (source, target)
    )
    (source_mean, source_spread), (target_mean, target_spread) = moments(source_lab), moments(target_lab)
    gain = np.clip(target_spread / np.maximum(source_spread, 1e-3), 0.5, 2)  # a flat source must not explode
    moved = ((source_lab - source_mean) * gain + target_mean).astype(np.float32)
    return _to_uint8(cv2.cvtColor(moved, cv2.COLOR_LAB2RGB) * 255)


METHODS = {
    "self-blend": Method(self_blend),
    "swap": Method(swap, needs_donor=True),
    "resample": Method(resample),
}


def _facing_alike(donor: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The donor or its mirror image, whichever is nearer to the image in coarse light: faces then turn the same way."""

    def distance(candidate: np.ndarray) -> float:
        coarse = [cv2.resize(array, (16, 16), interpolation=cv2.INTER_AREA) for array in (candidate, image)]
        inner = [array[6:14, 4:12].astype(np.float32).mean(axis=2) for array in coarse]
        return float(np.std(inner[0] - inner[1]))

    return min((donor, np.ascontiguousarray(donor[:, ::-1])), key=distance)


def _signed(rng: np.random.Generator, size: int | None = None) -> np.ndarray | float:
    """Uniform in ±[0.5, 1]: a jitter that never vanishes, so that severity alone sets the dose."""
    return rng.uniform(0.5, 1, size) * rng.choice([-1, 1], size)


def _blend(image: np.ndarray, forged: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return _to_uint8(image + mask[..., None] * (forged - image))


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
