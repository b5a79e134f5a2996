"""Celeb-DF v2 (Li et al., CVPR 2020) with extracted faces: its official test list of 518 videos.

::

    ROOT/List_of_testing_videos.txt                    lines "1 YouTube-real/00170.mp4"; 1 = real, 0 = fake
    ROOT/{Celeb-real,YouTube-real}/frames/VIDEO/*.png
    ROOT/Celeb-synthesis/frames/id0_id1_0000/*.png     target, source, number of the target's video
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from data_shards.adapters.frames import videos
from data_shards.command import InputError
from data_shards.faces import PRISTINE

log = logging.getLogger(__name__)

FOLDERS = {"Celeb-real": "real", "YouTube-real": "real", "Celeb-synthesis": "fake"}
TEST_VIDEOS = 518


def read(root: Path) -> Iterator[dict[str, str]]:
    """The test list, as split ``test``. The group is the target video, which a real one and its fakes share.

    Identities are not tied: swaps connect nearly all of the 59 to one component. The other videos are not read,
    because their people are those of the test list: there is no leak-free training set here. A listed video without
    images is an error; a list of another length is read, with a warning: what is measured on it is not comparable.
    """
    listed = _test_list(root / "List_of_testing_videos.txt")
    for folder, label in FOLDERS.items():
        missing = {name for where, name in listed if where == folder}
        for video, images in videos(root, f"{folder}/frames"):
            if video not in missing or not images:
                continue
            missing.remove(video)
            row = {
                "label": label,
                "method": PRISTINE if label == "real" else "Celeb-synthesis",
                "group": f"celeb-df:{target_video(video)}",
                "dataset": "celeb-df-v2",
                "split": "test",
                "video": f"celeb-df:{folder}/{video}",
            }
            yield from ({"path": image, **row} for image in images)
        for video in sorted(missing):
            raise InputError(f"{root / folder}/frames/{video} has no images, but the test list names it")


def target_video(name: str) -> str:
    """``id0_id1_0000`` → ``id0_0000``, the real video that was altered; other names are their own."""
    parts = name.split("_")
    return f"{parts[0]}_{parts[2]}" if len(parts) == 3 else name


def _test_list(file: Path) -> list[tuple[str, str]]:
    """(folder, video) of each line; its number must agree with the folder's label."""
    if not file.is_file():
        raise InputError(f"there is no {file}; it comes with Celeb-DF v2")
    listed = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        flag, _, path = line.strip().partition(" ")
        folder, _, video = path.strip().partition("/")
        if FOLDERS.get(folder) != {"1": "real", "0": "fake"}.get(flag):
            raise InputError(f"{file} line {number}: {line!r} is not like '1 YouTube-real/00170.mp4' (1 = real)")
        listed.append((folder, video.removesuffix(".mp4")))
    if len(listed) != TEST_VIDEOS:
        log.warning("%s lists %d videos, the official list of Celeb-DF v2 %d", file, len(listed), TEST_VIDEOS)
    return listed
