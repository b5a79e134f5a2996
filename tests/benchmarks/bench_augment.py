"""CPU time of each change of trainer/augment.py, per image, against other ways to make it, in one run, interleaved.

    python tests/benchmarks/bench_augment.py [IMAGES=32] [ROUNDS=7]

Each image of a batch gets the change, with parameters of its own. The per-sample way is NumPy, OpenCV and simplejpeg.
Kornia is optional. Prints Markdown.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from trainer.augment import augment, change, draw

SIZE = 224
OURS = "plain torch (ours)"
Change = Callable[[Tensor, np.ndarray], object]
"""Of images uint8 (n, height, width, 3) and one number for each, (n,)."""


def ours(images: Tensor, amount: np.ndarray, *, of: str) -> Tensor:
    nothing = draw(np.arange(len(images)), np.zeros(len(images), int), seed=0, flip=False, strength=0)
    wide = {"gain": np.repeat(amount[:, None], 3, 1), "pivot": np.repeat(1 - amount[:, None], 3, 1)}
    return change(images, nothing._replace(**(wide if of == "tone" else {of: amount})))


# --- one image after the other, on the CPU


def tone_numpy(image: np.ndarray, amount: float) -> np.ndarray:
    levels, mean = np.arange(256, dtype=np.float32), np.float32(image.mean())
    return np.clip(np.rint((levels - mean) * amount + mean), 0, 255).astype(np.uint8)[image]


def shrink_cv2(image: np.ndarray, amount: float) -> np.ndarray:
    side = round(SIZE * amount)
    return cv2.resize(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), (SIZE, SIZE))


def noise_numpy(image: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    noise = random.standard_normal(image.shape, np.float32)
    return (image + amount * noise).round().clip(0, 255).astype(np.uint8)


def jpeg_simplejpeg(image: np.ndarray, amount: float) -> np.ndarray:
    data = simplejpeg.encode_jpeg(image, quality=int(amount), colorsubsampling="420", fastdct=False)
    return simplejpeg.decode_jpeg(data)


def each(images: Tensor, amount: np.ndarray, *, function: Callable) -> list:
    return [function(image, value) for image, value in zip(images.numpy(), amount.tolist(), strict=True)]


# --- torchvision v2: one number for all images of a call, so one call for each


def each_v2(images: Tensor, amount: np.ndarray, *, function: Callable) -> list:
    planes = images.permute(0, 3, 1, 2)
    return [function(image, value) for image, value in zip(planes, amount.tolist(), strict=True)]


def shrink_v2(image: Tensor, amount: float) -> Tensor:
    return v2.resize(v2.resize(image, [round(SIZE * amount)] * 2), [SIZE, SIZE])


def noise_v2(image: Tensor, amount: float) -> Tensor:
    return v2.gaussian_noise(image.float() / 255, sigma=amount / 255)


def kornia_ways() -> dict[str, Change]:
    """Kornia on the batch; it has no down-scaling with a size for each image."""
    from kornia import enhance, filters

    def planes(images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).float() / 255

    def vector(amount: np.ndarray) -> Tensor:
        return torch.from_numpy(amount.astype(np.float32))

    def blur(images: Tensor, amount: np.ndarray) -> Tensor:
        return filters.gaussian_blur2d(planes(images), (13, 13), vector(amount)[:, None].repeat(1, 2))

    return {
        "tone": lambda images, amount: enhance.adjust_contrast_with_mean_subtraction(planes(images), vector(amount)),
        "blur": blur,
        "quality": lambda images, amount: enhance.jpeg_codec_differentiable(planes(images), vector(amount)),
    }


def ways(images: int) -> tuple[dict[str, dict[str, Change]], dict[str, np.ndarray]]:
    """Functions by way and change, and the numbers of each change."""
    rng = np.random.default_rng(0)
    amounts = {
        "tone": rng.uniform(0.6, 1.4, images),
        "blur": rng.uniform(0.1, 2, images),
        "scale": rng.uniform(0.25, 0.95, images),
        "noise": rng.uniform(1, 12, images),
        "quality": rng.integers(35, 96, images),
    }
    sample = {
        "tone": tone_numpy,
        "blur": lambda image, sigma: cv2.GaussianBlur(image, (13, 13), sigma),
        "scale": shrink_cv2,
        "noise": partial(noise_numpy, random=rng),
        "quality": jpeg_simplejpeg,
    }
    vision = {
        "tone": v2.adjust_contrast,
        "blur": lambda image, sigma: v2.gaussian_blur(image, [13, 13], [sigma]),
        "scale": shrink_v2,
        "noise": noise_v2,
        "quality": lambda image, quality: v2.jpeg(image, int(quality)),
    }
    found = {
        OURS: {name: partial(ours, of=name) for name in amounts},
        "per sample on the CPU": {name: partial(each, function=function) for name, function in sample.items()},
        "torchvision v2, per sample": {name: partial(each_v2, function=function) for name, function in vision.items()},
    }
    try:
        found["kornia, batched"] = kornia_ways()
    except ImportError:
        print("left out, not installed: kornia", file=sys.stderr)
    return found, amounts


def pictures(images: int) -> Tensor:
    """Smooth pictures with some noise, as a JPEG coder meets them."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (images, 14, 14, 3)).astype(np.float32)
    smooth = np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for image in coarse])
    return torch.from_numpy((smooth + rng.normal(0, 3.5, smooth.shape)).clip(0, 255).astype(np.uint8))


def main(images: int = 32, rounds: int = 7) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    batch, times = pictures(images), {}
    found, amounts = ways(images)
    whole = partial(augment, index=np.arange(images), epoch=np.zeros(images, int), seed=0, flip=True)
    for number in range(1 + rounds):  # the first one warms up
        for way, functions in found.items():
            for name, function in functions.items():
                began = time.process_time()
                function(batch, amounts[name])
                if number:
                    times.setdefault((way, name), []).append(time.process_time() - began)
        began = time.process_time()
        whole(batch, strength=1.0)
        if number:
            times.setdefault((OURS, "all"), []).append(time.process_time() - began)
    columns = {"tone": "tone", "blur": "blur", "scale": "down-scaling", "noise": "noise", "quality": "JPEG"}
    columns["all"] = "augmentation=1: all, each as often as drawn"
    names = ("torch", "torchvision", "numpy", "opencv-python-headless", "simplejpeg")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"CPU µs per image of {SIZE} pixels, batches of {images}, one thread, median of {rounds}; {versions}.\n")
    print(f"| way | {' | '.join(columns.values())} |\n|---{'|---' * len(columns)}|")
    for way in found:
        cells = [times.get((way, name)) for name in columns]
        print(f"| {way} | {' | '.join(f'{1e6 * statistics.median(c) / images:.0f}' if c else '–' for c in cells)} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
