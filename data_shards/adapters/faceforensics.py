"""FaceForensics++ (Rössler et al., ICCV 2019) with extracted faces.

::

    ROOT/original_sequences/youtube/{raw,c23,c40}/frames/000/*.png
    ROOT/manipulated_sequences/METHOD/{raw,c23,c40}/frames/000_003/*.png    target_source
    ROOT/{train,val,test}.json, or in ROOT/splits: the official pairs, 720/140/140 sequences

DeepFakeDetection (``actors``) lies in the same tree but has no official split; it is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.adapters.frames import read_json, table, videos
from data_shards.command import InputError
from data_shards.faces import PRISTINE

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("Deepfakes", "Face2Face", "FaceShifter", "FaceSwap", "NeuralTextures")
COMPRESSIONS = ("raw", "c23", "c40")
SPLIT_FILES = {"train": "train", "validation": "val", "test": "test"}
# Sequences cut from one YouTube video that the official split puts apart: (in train, in validation or test). Computed
# from the official split files and conversion_dict.json, which maps the 1,000 sequences to 977 videos.
SAME_VIDEO = (
    *(("838", "837"), ("876", "875"), ("983", "982"), ("639", "640"), ("605", "606")),
    *(("954", "955"), ("756", "755")),
)


def read(root: Path) -> pd.DataFrame:
    """All compressions there are, as datasets ``ff++-c23`` …; the official split; groups tie target and source."""
    split_of = _official_splits(root)
    rows: list[dict[str, Any]] = []
    for compression in COMPRESSIONS:
        for method, folder in _folders(root, compression):
            for video, images in videos(root, folder):
                ids = video.split("_")
                unknown = [sequence for sequence in ids if sequence not in split_of]
                if unknown:
                    raise InputError(f"{root / folder / video}: sequence {unknown[0]!r} is in no official split file")
                row = {
                    "label": "real" if method == PRISTINE else "fake",
                    "method": method,
                    "group": "|".join(f"ff++:{sequence}" for sequence in ids),
                    "dataset": f"ff++-{compression}",
                    "split": split_of[ids[0]],
                    "video": f"ff++-{compression}:{method}/{video}",
                }
                rows += [{"path": image, **row} for image in images]
    if not rows:
        raise InputError(f"{root} has no original_sequences/youtube/c23/frames (nor raw, c40): not FaceForensics++")
    return table(rows)


def read_clean(root: Path) -> pd.DataFrame:
    """As ``read``, without the validation and test pairs of which one was cut from a video that is also in training.

    The official split is disjoint in sequences but not in YouTube videos. Training stays as it is.
    """
    from data_shards.splits import components

    faces = read(root)
    tied = components([*faces["group"], *(f"ff++:{one}|ff++:{other}" for one, other in SAME_VIDEO)])[: len(faces)]
    training = (faces["split"] == "train").to_numpy()
    touched = ~training & np.isin(tied, tied[training])
    return faces[~touched].reset_index(drop=True)


def _official_splits(root: Path) -> dict[str, str]:
    split_of = {}
    for split, name in SPLIT_FILES.items():
        file = next((f for f in (root / f"{name}.json", root / "splits" / f"{name}.json") if f.is_file()), None)
        if file is None:
            raise InputError(f"{root} has no {name}.json; take the official split files of FaceForensics++")
        split_of |= {sequence: split for pair in read_json(file, list) for sequence in pair}
    return split_of


def _folders(root: Path, compression: str) -> list[tuple[str, str]]:
    """(method, folder) of what is there at a compression; fakes without the originals are refused by ``videos``."""
    fakes = [(method, f"manipulated_sequences/{method}/{compression}/frames") for method in METHODS]
    fakes = [(method, folder) for method, folder in fakes if (root / folder).is_dir()]
    originals = f"original_sequences/youtube/{compression}/frames"
    return [(PRISTINE, originals), *fakes] if fakes or (root / originals).is_dir() else []
