"""Makes the embedded sample: generated faces, one controlled forgery of each, packed as shard sets.

    pip install -e '.[sample]'
    python -m data_shards.make_sample out=sample

Faces come from MobileStyleGAN (Belousov 2021, arXiv 2104.04767; PyPI ``random-face``). Faces are forged as pixels,
before any encoding; real and forged images are then encoded once each, by one encoder at one setting, so that
compression is no clue. Identities belong to one split each, and the donor of a swap comes from the same split.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_shards.command import InputError, run
from data_shards.faces import PRISTINE
from data_shards.files import atomic
from data_shards.forge import METHODS, forge, rng_for
from data_shards.forgeries import encode
from data_shards.pack import pack

SIZE = 224  # pixels
QUALITY = 90  # JPEG, 4:2:0
TRUNCATION = 0.7  # of the style, towards the mean face: fewer broken pictures, still varied people
SEVERITIES = (0.4, 1.0)
SHARD_SIZE = 64


@dataclass(frozen=True)
class Part:
    """A shard set of the sample."""

    dataset: str
    split: str
    share: float
    """Of all faces."""
    methods: tuple[str, ...]


TRAINED = ("self-blend", "swap")
PARTS = {
    "train": Part("sample", "train", 0.42, TRAINED),
    "validation": Part("sample", "validation", 0.16, TRAINED),
    "test": Part("sample", "test", 0.19, TRAINED),
    "unseen": Part("sample-unseen", "test", 0.23, ("resample",)),
}


@dataclass
class SampleConfig:
    """Make the embedded sample: generated faces and one controlled forgery of each, as four shard sets."""

    out: str
    """Folder to make; it will hold train/, validation/, test/ and unseen/."""
    faces: int = 260
    """Generated identities over all sets; at least 20."""
    seed: int = 0
    """Of the forgeries and the order of the shards. Faces have their own seeds, 1 to ``faces``."""


def generate(seeds: Iterable[int]) -> Iterator[np.ndarray]:
    """A face per seed, uint8 RGB (SIZE, SIZE, 3), of nobody. InputError where the generator is not installed."""
    package = importlib.util.find_spec("random_face")
    if package is None or package.origin is None or importlib.util.find_spec("openvino") is None:
        raise InputError("the generator is not installed: pip install -e '.[sample]'")
    import openvino

    # The package's own code asks for an interface that OpenVINO no longer has; its networks load as they are.
    networks = Path(package.origin).parent / "data"
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    mapping = core.read_model(networks / "MappingNetwork.xml")
    mapping.reshape([-1, 512])
    to_style = core.compile_model(mapping, "CPU", exact)
    to_image = core.compile_model(core.read_model(networks / "SynthesisNetwork.xml"), "CPU", exact)

    def style(seed: int, count: int) -> np.ndarray:
        latent = np.random.default_rng(seed).standard_normal((count, 512)).astype(np.float32)
        return to_style([latent])[0].mean(axis=0, keepdims=True)

    mean = style(0, 4096)
    for seed in seeds:
        picture = to_image([mean + TRUNCATION * (style(seed, 1) - mean)])[0][0]  # (3, 1024, 1024) in about [-1, 1]
        pixels = np.clip(np.rint((picture.transpose(1, 2, 0) + 1) * 127.5), 0, 255).astype(np.uint8)
        yield cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def build(images: dict[int, np.ndarray], out: Path, seed: int) -> None:
    """Forge, encode and pack faces (by generator seed) into ``out/train``, ``validation``, ``test`` and ``unseen``."""
    import pandas as pd

    seeds = sorted(images)
    bounds = np.cumsum([0.0, *(part.share for part in PARTS.values())]) / 2
    cuts = 2 * np.rint(bounds * len(seeds)).astype(int)  # even numbers: faces of a set form pairs for the swaps
    with atomic(out) as folder, tempfile.TemporaryDirectory() as scratch:
        folder.mkdir()
        for (name, part), first, last in zip(PARTS.items(), cuts[:-1], cuts[1:], strict=True):
            source, target = Path(scratch, name), Path(scratch, f"{name}-packed")
            source.mkdir()
            rows = forge_part(part, {face: images[face] for face in seeds[first:last]}, source, seed)
            packed = pack(pd.DataFrame(rows), source, target, seed=seed, shard_size=SHARD_SIZE, workers=1)
            shutil.move(packed[part.split], folder / name)


def forge_part(part: Part, images: dict[int, np.ndarray], folder: Path, seed: int) -> list[dict[str, Any]]:
    """Write the real and the forged JPEG of every face of one set to ``folder``; returns rows of a face table."""
    partners = pair_alike(images)
    # Both faces of a pair get one method, each method as many pairs: a swap ties two faces, never more.
    pairs = sorted({tuple(sorted(pair)) for pair in partners.items()})
    methods = np.random.default_rng(seed).permutation(np.resize(part.methods, len(pairs))).tolist()
    method_of = {face: method for pair, method in zip(pairs, methods, strict=True) for face in pair}
    rows = []
    for face in images:
        method = method_of[face]
        name = f"face-{face:04d}"
        severity = round(float(rng_for(seed, name, "severity", 0).uniform(*SEVERITIES)), 3)
        partner = partners[face] if METHODS[method].needs_donor else None
        donor = None if partner is None else images[partner]
        forged = forge(method, images[face], severity, rng_for(seed, name, method, severity), donor)
        group = name if partner is None else f"{name}|face-{partner:04d}"
        common = {"dataset": part.dataset, "split": part.split, "generator_seed": face}
        real = {"path": f"{name}-real.jpg", "label": "real", "method": PRISTINE, "group": name, "severity": 0.0}
        fake = {"path": f"{name}-{method}.jpg", "label": "fake", "method": method, "group": group, "severity": severity}
        for row, image in ((real, images[face]), (fake, forged)):
            (folder / row["path"]).write_bytes(encode(image, "JPEG", QUALITY))
            rows.append(row | common)
    return rows


def pair_alike(images: dict[int, np.ndarray]) -> dict[int, int]:
    """A partner for each of an even number of faces: greedy disjoint pairs, nearest first in coarse inner-face colour.

    Pose, light and skin are then alike, as a forger would choose; mirrored faces count, as ``swap`` may mirror a donor.
    """
    faces = list(images)
    coarse = np.stack([cv2.resize(images[face], (16, 16), interpolation=cv2.INTER_AREA) for face in faces])
    inner = coarse[:, 6:14, 4:12].astype(np.float32)
    distances = []
    for i in range(len(faces)):
        for j in range(i + 1, len(faces)):
            both = (np.abs(inner[i] - inner[j]).mean(), np.abs(inner[i] - inner[j][:, ::-1]).mean())
            distances.append((float(min(both)), i, j))
    partner: dict[int, int] = {}
    for _, i, j in sorted(distances):
        if faces[i] not in partner and faces[j] not in partner:
            partner |= {faces[i]: faces[j], faces[j]: faces[i]}
    return partner


def make_sample(config: SampleConfig) -> None:
    from tqdm import tqdm

    if config.faces < 20 or config.faces % 2:
        raise InputError(f"faces={config.faces} must be even and at least 20: every set needs pairs")
    out = Path(config.out)
    if out.exists() and os.listdir(out):
        raise InputError(f"{out} is not empty; give another out or remove it")
    seeds = range(1, config.faces + 1)
    images = dict(zip(seeds, tqdm(generate(seeds), "generating", config.faces, unit="face", disable=None), strict=True))
    build(images, out, config.seed)
    print(f"wrote {out}")


if __name__ == "__main__":
    run(SampleConfig, make_sample)
