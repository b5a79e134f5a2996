"""Scores of a folder of face images, without packing them: what ``trainer.predict images=FOLDER`` does."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_shards.command import InputError
from data_shards.faces import FORMATS, MAX_PIXELS
from data_shards.files import atomic

if TYPE_CHECKING:
    import torch

    from trainer.card import BackboneCard
    from trainer.classifier import Classifier

Decoded = Future[np.ndarray]


def score_folder(
    model: Classifier,
    card: BackboneCard,
    device: torch.device,
    folder: Path,
    out: Path,
    *,
    on_bad: Literal["raise", "skip"] = "raise",
    batch_size: int = 64,
    threads: int = 2,
) -> tuple[int, int]:
    """Write ``path, logit, fake_probability`` of each image below ``folder``, in the order of their relative paths.

    Images are read as in training: a square of the card's size, bicubic, without cutting. ``model`` is in evaluation
    mode on ``device``. Returns how many were scored and how many could not be read: the first of those raises
    InputError and nothing is written, or with ``skip`` it is named on stderr and left out. InputError too if there is
    no image.
    """
    from tqdm import tqdm

    paths = find_images(folder)
    rows: list[tuple[str, float, float]] = []
    skipped, terminal = 0, sys.stderr.isatty()
    with tqdm(total=len(paths), desc=f"score {folder.name}", unit="image", disable=not terminal) as bar:
        for batch in _decoded(paths, card.input_size, batch_size, threads):
            pixels, names = [], []
            for path, future in batch:
                try:
                    pixels.append(future.result())
                    names.append(path.relative_to(folder).as_posix())
                except UnreadableImage as error:
                    if on_bad == "raise":
                        raise InputError(f"{error}; remove it or give on_bad=skip") from None
                    print(f"left out: {error}", file=sys.stderr)
                    skipped += 1
            if names:
                rows += zip(names, *_logits(model, card, device, np.stack(pixels)), strict=True)
            bar.update(len(batch))
    if not rows:
        raise InputError(f"none of the {skipped} images in {folder} could be read")
    with atomic(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "logit", "fake_probability"))
        writer.writerows(rows)
    return len(rows), skipped


class UnreadableImage(ValueError):
    """A file that is named as an image and is none that can be read. Says which and why."""


def find_images(folder: Path) -> list[Path]:
    """Files below ``folder`` whose extension is one of an image, sorted; InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    if not paths:
        raise InputError(f"{folder} holds no image ({', '.join(sorted(FORMATS))})")
    return paths


def read_image(path: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3), RGB, as data_shards.reader gives it for the same bytes; UnreadableImage otherwise."""
    from PIL import Image

    try:
        with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
            colours = image.convert("RGB")
        if colours.size != (size, size):
            colours = colours.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(colours)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} is no image that can be read ({error})") from None


def _decoded(paths: list[Path], size: int, batch_size: int, threads: int) -> Iterator[list[tuple[Path, Decoded]]]:
    """Batches of paths and their pixels, one batch decoded ahead of the one in use."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[list[tuple[Path, Decoded]]] = deque()
        for start in range(0, len(paths), batch_size):
            pending.append([(path, pool.submit(read_image, path, size)) for path in paths[start : start + batch_size]])
            if len(pending) > 1:
                yield pending.popleft()
        yield from pending


def _logits(
    model: Classifier, card: BackboneCard, device: torch.device, pixels: np.ndarray
) -> tuple[list[float], list[float]]:
    """Logits and fake probabilities of uint8 (n, S, S, 3)."""
    import torch

    from trainer.preprocess import normalize

    with torch.inference_mode():
        logits = model(normalize(torch.from_numpy(pixels).to(device), card)).double().cpu()
    return logits.tolist(), logits.sigmoid().tolist()
