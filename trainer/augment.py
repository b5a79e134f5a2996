"""Random changes of training images, batched, on their device: a pure function of (seed, epoch, sample index).

What happens to a sample is drawn on the CPU from a counter of its own, so that there is no state to save or to lose,
and neither ranks nor the cut into batches matter. Then the whole batch is changed by tensor operations. Their order is
that of a picture on its way: taken (mirrored, tone), processed (blur, down-scaling), noisy, and compressed last.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from data_shards.order import splitmix64
from trainer.jpeg import compress

TONE, CAST = 0.4, 0.2  # brightness and contrast by a factor of 1 ± TONE, each channel by 1 ± CAST
RARE = 0.25  # share of the images that each of blur, down-scaling and noise changes
BLUR, NOISE = 2.0, 12.0  # largest standard deviations, in pixels and in levels of 255
SMALLEST = 0.25  # side after down-scaling, relative
COMPRESSED = 0.5  # share of the images that are compressed
BEST, WORST = 95, 35  # JPEG quality
TABLE = 2**21


class Changes(NamedTuple):
    """What happens to each of n images."""

    mirror: np.ndarray
    """bool (n,)."""
    gain: np.ndarray
    """float64 (n, 3): brightness times contrast times the channel's cast; 1 = none."""
    pivot: np.ndarray
    """float64 (n, 3): (1 - contrast) times cast, by which the image's mean level is added; 0 = none."""
    blur: np.ndarray
    """float64 (n,): standard deviation in pixels; 0 = none."""
    scale: np.ndarray
    """float64 (n,): side of the small picture in between, relative; 1 = none."""
    noise: np.ndarray
    """float64 (n,): standard deviation in levels; 0 = none."""
    window: np.ndarray
    """int64 (n,): which part of the table of noise, from 0 to 2**31 - 1."""
    quality: np.ndarray
    """int64 (n,): of JPEG; 0 = none."""


def augment(images: Tensor, index: np.ndarray, epoch: np.ndarray, *, seed: int, flip: bool, strength: float) -> Tensor:
    """Change each image as ``draw`` says.

    images: uint8 (n, height, width, 3) on any device, not changed; index, epoch: int (n,). Returns uint8 of the same
    shape, on the same device; ``images`` itself if there is nothing to do.
    """
    if not flip and not strength:
        return images
    return change(images, draw(index, epoch, seed=seed, flip=flip, strength=strength))


def draw(index: np.ndarray, epoch: np.ndarray, *, seed: int, flip: bool, strength: float) -> Changes:
    """What is to happen to the samples of these indices in these epochs, int (n,) each.

    ``flip`` mirrors with probability 1/2. ``strength`` s in [0, 1] scales brightness and contrast (about the image's
    mean; 1 ± 0.4 s), colour cast (each channel 1 ± 0.2 s), and both how often and how much: blur (probability s / 4,
    up to 2 s pixels), down-scaling and back (s / 4, to no less than 1 - 0.75 s of the side), Gaussian noise (s / 4, up
    to 12 s levels), JPEG (s / 2, quality 95 - 60 s to 95).
    """
    u = uniform(index, epoch, seed, 15)
    brightness, contrast = 1 + TONE * strength * (2 * u[:, 1:3].T - 1)
    cast = 1 + CAST * strength * (2 * u[:, 3:6] - 1)

    def sometimes(column: int, share: float, amount: np.ndarray, none: float) -> np.ndarray:
        return np.where(u[:, column] < share * strength, amount, none)

    quality = np.rint(BEST - (BEST - WORST) * strength * u[:, 13])
    return Changes(
        mirror=(u[:, 0] < 0.5) & flip,
        gain=(brightness * contrast)[:, None] * cast,
        pivot=(1 - contrast)[:, None] * cast,
        blur=sometimes(6, RARE, BLUR * strength * u[:, 7], 0.0),
        scale=sometimes(8, RARE, 1 - (1 - SMALLEST) * strength * u[:, 9], 1.0),
        noise=sometimes(10, RARE, NOISE * strength * u[:, 11], 0.0),
        window=(u[:, 14] * 2**31).astype(np.int64),
        quality=sometimes(12, COMPRESSED, quality, 0).astype(np.int64),
    )


def change(images: Tensor, changes: Changes) -> Tensor:
    """``images``, uint8 (n, height, width, 3), after these changes; uint8, on the same device.

    A CPU takes one image after the other: its planes stay in the cache, and products of one shape give the same bits
    for every cut into batches.
    """
    if images.device.type == "cpu" and len(images) > 1:
        singly = (Changes(*(values[i : i + 1] for values in changes)) for i in range(len(images)))
        return torch.cat([change(images[i : i + 1], one) for i, one in enumerate(singly)])
    toned = (changes.gain != 1).any(axis=1) | (changes.pivot != 0).any(axis=1)
    steps = (
        (_tone, toned, (changes.gain, changes.pivot)),
        (_blur, changes.blur > 0, (changes.blur,)),
        (_shrink, changes.scale < 1, (changes.scale,)),
        (_noise, changes.noise > 0, (changes.noise, changes.window)),
        (compress, changes.quality > 0, (changes.quality,)),
    )
    out = images
    if changes.mirror.any():
        mirror = torch.from_numpy(changes.mirror).to(images.device)
        out = (
            images.flip(2) if changes.mirror.all() else torch.where(mirror[:, None, None, None], images.flip(2), images)
        )
    if not any(chosen.any() for _, chosen, _ in steps):
        return out
    planes = out.permute(0, 3, 1, 2).contiguous().float()  # (n, 3, height, width), whole levels from 0 to 255
    for step, chosen, numbers in steps:
        rows = np.flatnonzero(chosen)
        if len(rows):
            some = slice(None) if len(rows) == len(images) else torch.from_numpy(rows).to(images.device)
            planes[some] = step(planes[some], *(values[rows] for values in numbers)).round_().clamp_(0, 255)
    return planes.permute(0, 2, 3, 1).contiguous().to(torch.uint8)


# --- the steps: planes float32 (m, 3, height, width) and numbers for each image → planes


def _tone(planes: Tensor, gain: np.ndarray, pivot: np.ndarray) -> Tensor:
    """Times ``gain``, plus ``pivot`` times the image's mean level; both (m, 3)."""
    sums = planes.sum(3).double().sum((1, 2))  # of whole numbers: exact, in any order
    mean = (sums / planes[0].numel()).float()[:, None]
    gain, pivot = (_like(planes, values) for values in (gain, pivot))
    return planes * gain[..., None, None] + (pivot * mean)[..., None, None]


def _blur(planes: Tensor, sigma: np.ndarray) -> Tensor:
    """With a Gaussian of standard deviation ``sigma`` (m,) in pixels, down then across, edges mirrored."""
    radius = min(math.ceil(3 * sigma.max()), *(side - 1 for side in planes.shape[2:]))
    distance = np.abs(np.arange(-radius, radius + 1))
    taps = np.exp(-0.5 * (distance / sigma[:, None]) ** 2) * (distance <= np.ceil(3 * sigma[:, None]))
    taps = _like(planes, taps / taps.sum(axis=1, keepdims=True))
    for axis, border in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        wide, size = pad(planes, border, mode="reflect"), planes.shape[axis]
        planes = torch.zeros_like(planes)
        for tap in range(2 * radius + 1):
            planes.addcmul_(wide.narrow(axis, tap, size), taps[:, tap, None, None, None])
    return planes


def _shrink(planes: Tensor, scale: np.ndarray) -> Tensor:
    """To ``scale`` (m,) of the sides, and back; linear, antialiased."""
    height, width = planes.shape[2:]
    out = torch.empty_like(planes)
    for row, factor in enumerate(scale.tolist()):
        size = max(1, round(height * factor)), max(1, round(width * factor))
        small = interpolate(planes[row : row + 1], size, mode="bilinear", antialias=True)
        out[row] = interpolate(small, (height, width), mode="bilinear")[0]
    return out


def _noise(planes: Tensor, sigma: np.ndarray, window: np.ndarray) -> Tensor:
    """Plus Gaussian noise of standard deviation ``sigma`` (m,) in levels, from this ``window`` (m,) of the table."""
    size = planes[0].numel()
    table = _noise_table(planes.device, size)
    noise = torch.stack([table[start : start + size] for start in (window % TABLE).tolist()]).view_as(planes)
    return planes + noise * _like(planes, sigma)[:, None, None, None]


def _like(planes: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(planes.device)


@lru_cache(maxsize=4)
def _noise_table(device: torch.device, size: int) -> Tensor:
    """Normal numbers, float32 (TABLE + size,). A window of a fixed table for each image costs a copy; numbers of its
    own cost as much as decoding it."""
    u = uniform(np.arange((TABLE + size + 1) // 2), np.zeros(1, np.int64), 0, 2)
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, 0])), 2 * np.pi * u[:, 1]  # Box and Muller
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(normal[: TABLE + size].astype(np.float32)).to(device)


def uniform(index: np.ndarray, epoch: np.ndarray, seed: int, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each sample, float64 (n, count): the SplitMix64 sequence that (seed, epoch,
    index) begins. NumPy's generators cost more than the whole of ``draw``, one per sample."""
    key = splitmix64(np.uint64(seed % 2**64))
    for part in (epoch, index):
        key = splitmix64(key ^ np.asarray(part).astype(np.uint64))
    return (splitmix64(key[..., None], count) >> np.uint64(11)) * 2.0**-53
