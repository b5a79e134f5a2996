"""Face tables from the layouts in which public datasets come, by name.

An adapter is a function of the dataset's folder or file that yields the rows of a face table, one dict per image, with
paths relative to that folder (or absolute). It knows the layout and the official splits, and it ties by ``group`` what
shares a source video; ids begin with the name of the dataset, so that equal ids of two datasets do not tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from data_shards.adapters import celeb_df, deepfakebench, dfdc, faceforensics

ADAPTERS: dict[str, Callable[[Path], Iterator[dict[str, str]]]] = {
    "celeb-df": celeb_df.read,
    "deepfakebench": deepfakebench.read,
    "deepfakebench-test": deepfakebench.read_test,
    "dfdc": dfdc.read,
    "dfdc-test": dfdc.read_test,
    "faceforensics": faceforensics.read,
    "faceforensics-clean": faceforensics.read_clean,
}
