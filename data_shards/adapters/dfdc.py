"""Deepfake Detection Challenge (Dolhansky et al., 2020) with extracted faces.

::

    ROOT/**/dfdc_train_part_N/metadata.json         {"aa.mp4": {"label": "FAKE", "original": "bb.mp4", …}, …}
    ROOT/**/dfdc_train_part_N/frames/VIDEO/*.png
    ROOT/labels.csv, ROOT/frames/VIDEO/*.png        the test set (ROOT = its folder): filename,label; 1 = fake
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from data_shards.adapters.frames import read_json, videos
from data_shards.command import InputError
from data_shards.faces import PRISTINE

METHOD = "dfdc"  # the published metadata do not tell the methods apart


def read(root: Path) -> Iterator[dict[str, str]]:
    """The training parts, without splits: those are made on groups, the original that a real and its fakes share."""
    parts = sorted(root.glob("**/metadata.json"))
    if not parts:
        raise InputError(f"there is no metadata.json below {root}; it comes with each part of DFDC")
    for part in parts:
        metadata = read_json(part, dict)
        below = (part.parent / "frames").relative_to(root).as_posix()
        for video, images in videos(root, below):
            entry = metadata.get(f"{video}.mp4")
            if not isinstance(entry, dict) or entry.get("label") not in ("REAL", "FAKE"):
                raise InputError(f"{part} does not say whether {video}.mp4 is REAL or FAKE")
            fake = entry["label"] == "FAKE"
            source = entry.get("original") if fake else f"{video}.mp4"
            if not source:
                raise InputError(f"{part} does not name the original of {video}.mp4, which is FAKE")
            yield from _rows(images, video, fake, source.removesuffix(".mp4"))


def read_test(root: Path) -> Iterator[dict[str, str]]:
    """The published test set, as split ``test``; its originals are not told, so every video is its own group."""
    file = root / "labels.csv"
    if not file.is_file():
        raise InputError(f"there is no {file}; give the folder of the DFDC test set")
    with open(file, encoding="utf-8", newline="") as lines:
        labels = {row["filename"].removesuffix(".mp4"): row["label"] for row in csv.DictReader(lines)}
    for video, images in videos(root, "frames"):
        if labels.get(video) not in ("0", "1"):
            raise InputError(f"{file} does not say whether {video}.mp4 is 0 (real) or 1 (fake)")
        yield from ({**row, "split": "test"} for row in _rows(images, video, labels[video] == "1", video))


def _rows(images: list[str], video: str, fake: bool, source: str) -> Iterator[dict[str, str]]:
    row = {
        "label": "fake" if fake else "real",
        "method": METHOD if fake else PRISTINE,
        "group": f"dfdc:{source}",
        "dataset": "dfdc",
        "video": f"dfdc:{video}",
    }
    return ({"path": image, **row} for image in images)
