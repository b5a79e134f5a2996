"""FaceForensics++ (Rössler et al., ICCV 2019) with extracted faces.

::

    ROOT/original_sequences/youtube/{raw,c23,c40}/frames/000/*.png
    ROOT/manipulated_sequences/METHOD/{raw,c23,c40}/frames/000_003/*.png    target_source
    ROOT/{train,val,test}.json, or in ROOT/splits: the official pairs, 720/140/140 sequences
    ROOT/conversion_dict.json, optional: {"000": "YOUTUBE-ID 0", …}, the video that each sequence was cut from

DeepFakeDetection (``actors``) lies in the same tree but has no official split; it is not read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_shards.adapters.frames import read_json, videos
from data_shards.command import InputError
from data_shards.faces import PRISTINE

log = logging.getLogger(__name__)

METHODS = ("Deepfakes", "Face2Face", "FaceShifter", "FaceSwap", "NeuralTextures")
COMPRESSIONS = ("raw", "c23", "c40")
SPLIT_FILES = {"train": "train", "validation": "val", "test": "test"}
OFFICIAL = {"train": 720, "validation": 140, "test": 140}  # sequences
# Sequences cut from one YouTube video that the official split puts apart: (in train, in validation or test). Computed
# from the official split files and conversion_dict.json, which maps the 1,000 sequences to 977 videos.
SAME_VIDEO = (
    *(("838", "837"), ("876", "875"), ("983", "982"), ("639", "640"), ("605", "606")),
    *(("954", "955"), ("756", "755")),
)


def read(root: Path) -> Iterator[dict[str, str]]:
    """All compressions there are, as datasets ``ff++-c23`` …; the official split; groups tie target and source.

    A copy with fewer sequences is read, with a warning: what is measured on it is not comparable.
    """
    split_of = _official_splits(root)
    originals: set[str] = set()
    for row, images in _videos(root, split_of):
        yield from ({"path": image, **row} for image in images)
        if row["method"] == PRISTINE and images:
            originals.add(row["group"].removeprefix("ff++:"))
    if not originals:
        raise InputError(f"{root} has no original_sequences/youtube/c23/frames (nor raw, c40): not FaceForensics++")
    found = Counter(split_of[sequence] for sequence in originals)
    if found != OFFICIAL:
        counts = [" / ".join(str(of[split]) for split in SPLIT_FILES) for of in (found, OFFICIAL)]
        log.warning("%s has %s original sequences (train / validation / test), the official split %s", root, *counts)


def _videos(root: Path, split_of: dict[str, str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(what the rows of a video have in common, its images)."""
    for compression in COMPRESSIONS:
        for method, folder in _folders(root, compression):
            for video, images in videos(root, folder):
                ids = video.split("_")
                unknown = [sequence for sequence in ids if sequence not in split_of]
                if unknown:
                    raise InputError(f"{root / folder / video}: sequence {unknown[0]!r} is in no official split file")
                common = {
                    "label": "real" if method == PRISTINE else "fake",
                    "method": method,
                    "group": "|".join(f"ff++:{sequence}" for sequence in ids),
                    "dataset": f"ff++-{compression}",
                    "split": split_of[ids[0]],
                    "video": f"ff++-{compression}:{method}/{video}",
                }
                yield common, images


def read_clean(root: Path) -> Iterator[dict[str, str]]:
    """As ``read``, with groups that also tie the sequences cut from one YouTube video, and without the validation and
    test pairs of which a sequence was cut from a video of the training split.

    The official split is disjoint in sequences but not in videos. All videos are tied if the folder has
    conversion_dict.json, else those that are known to straddle. Training has the images of ``read``. A pair that shares
    a video with a dropped pair only is kept: what tied it to training is gone.
    """
    video_of = _shared_videos(root)

    @cache
    def tied(group: str) -> str:
        sequences = [name.removeprefix("ff++:") for name in group.split("|")]
        return "|".join([group, *sorted({f"ff++:youtube:{video_of[s]}" for s in sequences if s in video_of})])

    pairs = {(row["group"], row["split"]) for row, images in _videos(root, _official_splits(root)) if images}
    trained = {name for group, split in pairs if split == "train" for name in tied(group).split("|")}
    touched = [group for group, split in pairs if split != "train" and not trained.isdisjoint(tied(group).split("|"))]
    dropped = {name for group in touched for name in group.split("|")}  # the sequences of whole pairs
    for row in read(root):
        if row["split"] == "train" or dropped.isdisjoint(row["group"].split("|")):
            yield {**row, "group": tied(row["group"])}


def _shared_videos(root: Path) -> dict[str, str]:
    """The YouTube video of each sequence that was not the only one cut from it, by a name."""
    file = root / "conversion_dict.json"
    if not file.is_file():
        return {sequence: "+".join(pair) for pair in SAME_VIDEO for sequence in pair}
    video_of = {}
    for sequence, entry in read_json(file, dict).items():
        video, _, number = str(entry).rpartition(" ")
        if not video or not number.isdigit():
            raise InputError(f"{file}: {sequence!r} is {entry!r}, not like 'YOUTUBE-ID 0'")
        video_of[sequence] = video
    cut = Counter(video_of.values())
    return {sequence: video for sequence, video in video_of.items() if cut[video] > 1}


def _official_splits(root: Path) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for split, name in SPLIT_FILES.items():
        file = next((f for f in (root / f"{name}.json", root / "splits" / f"{name}.json") if f.is_file()), None)
        if file is None:
            raise InputError(f"{root} has no {name}.json; take the official split files of FaceForensics++")
        for sequence in (sequence for pair in read_json(file, list) for sequence in pair):
            if sequence in split_of:
                raise InputError(
                    f"{file} lists {sequence!r}, which is in {split_of[sequence]} already; it needs one split"
                )
            split_of[sequence] = split
    return split_of


def _folders(root: Path, compression: str) -> list[tuple[str, str]]:
    """(method, folder) of what is there at a compression; fakes without the originals are refused by ``videos``."""
    fakes = [(method, f"manipulated_sequences/{method}/{compression}/frames") for method in METHODS]
    fakes = [(method, folder) for method, folder in fakes if (root / folder).is_dir()]
    originals = f"original_sequences/youtube/{compression}/frames"
    return [(PRISTINE, originals), *fakes] if fakes or (root / originals).is_dir() else []
