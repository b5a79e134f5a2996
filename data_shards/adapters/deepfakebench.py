"""The dataset JSON files of DeepfakeBench: who has its preprocessed faces runs on them unchanged.

::

    {DATASET: {LABEL: {SPLIT: {[COMPRESSION: ]{VIDEO: {"label": LABEL, "frames": [PATH, …]}}}}}}

LABEL ends in ``real`` for real videos (``FF-real``, ``CelebDFv2_real``, ``DFDC_Real``) and names the method of
others. Paths are relative to the folder of preprocessed faces (give it as ``root``), some with backslashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.adapters.celeb_df import target_video
from data_shards.adapters.frames import read_json
from data_shards.command import InputError
from data_shards.faces import PRISTINE

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
# For most datasets "val" repeats "test" and "train" holds the test videos too: a video stays in one split, the first.
PRECEDENCE = ("test", "train", "validation")
COMPRESSIONS = ("raw", "c23", "c40")
METHODS = {
    "FF-DF": "Deepfakes",
    "FF-F2F": "Face2Face",
    "FF-FS": "FaceSwap",
    "FF-NT": "NeuralTextures",
    "FF-FH": "FaceShifter",
}
# Of DeeperForensics (real M101_light_up_…; fake 000_M101: actor M101 on sequence 000 of FaceForensics++) and of DFDCP
# (real 1003254_A_001; fake 1255229_1003254_A_001, made of that clip): how the videos of a label are named, their group.
NAMED = {
    "DF_real": (r"([MW]\d+)_.+", "deeperforensics:{}"),
    "DF_fake": (r"(\d{3})_([MW]\d+)", "ff++:{}|deeperforensics:{}"),
    "DFDCP_Real": (r"(\d+_[A-Z]_\d+)", "dfdcp:{}"),
    "DFDCP_FakeA": (r"\d+_(\d+_[A-Z]_\d+)", "dfdcp:{}"),
    "DFDCP_FakeB": (r"\d+_(\d+_[A-Z]_\d+)", "dfdcp:{}"),
}


def read(file: Path) -> Iterator[dict[str, str]]:
    """All videos of a JSON file, each once, with the file's splits; FaceForensics++ as datasets ``ff++-c23`` …"""
    found = list(_videos(read_json(file, dict), ()))
    if not found:
        raise InputError(f"{file} lists no video with frames; is it one of DeepfakeBench's dataset JSON files?")
    seen: set[str] = set()  # as large as the file, which is read as a whole
    for keys, frames in sorted(found, key=lambda video: PRECEDENCE.index(_split(file, video[0]))):
        for row in _rows(file, keys, frames):
            if row["path"] not in seen:
                seen.add(row["path"])
                yield row


def read_test(file: Path) -> Iterator[dict[str, str]]:
    """The test split alone: what DeepfakeBench evaluates on, for datasets that are not trained on."""
    return (row for row in read(file) if row["split"] == "test")


def _videos(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(keys on the way, frames) of every video, at whatever depth."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get("frames"), list):
        yield keys, node["frames"]
        return
    for key, inner in node.items():
        yield from _videos(inner, (*keys, key))


def _split(file: Path, keys: tuple[str, ...]) -> str:
    if len(keys) < 3 or keys[2] not in SPLIT_NAMES:
        raise InputError(f"{file}: {'/'.join(keys)} is not like DATASET/LABEL/train/VIDEO")
    return SPLIT_NAMES[keys[2]]


def _rows(file: Path, keys: tuple[str, ...], frames: list[str]) -> Iterator[dict[str, str]]:
    dataset, label = keys[:2]
    compression = next((key for key in keys[3:] if key in COMPRESSIONS), None)
    real = label.lower().endswith("real")
    for frame in frames:
        path = frame.replace("\\", "/")
        # The folder of the frame, not the last key, names the video: in DFDC's "val" the key is missing.
        folder = Path(path).parent
        group = _group(dataset, label, folder.name)
        if group is None:
            raise InputError(f"{file}: {label} {folder} is not named like {NAMED[label][0]}, which tells its source")
        yield {
            "path": path,
            "label": "real" if real else "fake",
            "method": PRISTINE if real else METHODS.get(label, label),
            "group": group,
            "dataset": f"ff++-{compression}" if label.startswith("FF-") and compression else dataset,
            "split": _split(file, keys),
            "video": str(folder),  # names method and compression, too
        }


def _group(dataset: str, label: str, video: str) -> str | None:
    """What the names of the videos tell of their sources; the ids are those of the datasets' own adapters.

    None for a name that is not of the form of NAMED. DFDC's do not tell it: there every video is its own group.
    """
    if label.startswith("FF-"):  # target_source
        return "|".join(f"ff++:{sequence}" for sequence in video.split("_"))
    if label.startswith("DFD_"):  # 01__talking of actor 01, 01_02__talking__YVGY8LOK of the actors 01 and 02
        return "|".join(f"dfd:{actor}" for actor in video.split("__")[0].split("_"))
    if dataset in ("Celeb-DF-v1", "Celeb-DF-v2"):  # the second version extends the first
        return f"celeb-df:{target_video(video)}"
    if dataset == "UADFV":  # 0000 and 0000_fake
        return f"uadfv:{video.removesuffix('_fake')}"
    if label in NAMED:
        pattern, group = NAMED[label]
        found = re.fullmatch(pattern, video)
        return found and group.format(*found.groups())
    return f"{dataset.lower()}:{video}"
