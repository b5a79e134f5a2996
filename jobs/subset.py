"""Smaller or deliberately mislabelled training sets of a sweep: shard sets packed from a shard set.

``train_groups``: how many independent groups are kept; a smaller subset lies in a larger one. ``flipped_labels``: which
share of the samples that are kept gets the other label, as a probe of memorisation (Zhang et al., Understanding Deep
Learning Requires Rethinking Generalization, ICLR 2017). Both depend on the packed data alone.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.command import InputError
from data_shards.faces import LABELS, PRISTINE
from data_shards.files import write_json
from data_shards.manifest import MANIFEST, ShardSet

KEYS = ("train_groups", "flipped_labels")
"""Keys of a sweep that choose the training set; all others are keys of trainer.config.FinetuneConfig."""
SAME_IMAGE = ("sha256", "length")
"""Columns of the index by which a sample is found again in another shard set."""
TRUE_LABEL = "true_label"
"""Column of the index with the label that the faces have."""


@dataclass(frozen=True)
class Subset:
    """Which part of a training set to take."""

    train_groups: int | None = None
    """Independent groups to keep; None: all."""
    flipped_labels: float = 0.0
    """Share of samples with the other label."""

    def __post_init__(self) -> None:
        groups, share = self.train_groups, self.flipped_labels
        if groups is not None and (not isinstance(groups, int) or isinstance(groups, bool) or groups < 1):
            raise InputError(f"train_groups={groups!r} must be a whole number above 0, or null for all")
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share < 1:
            raise InputError(f"flipped_labels={share!r} must be from 0 to below 1")

    @property
    def whole(self) -> bool:
        return self.train_groups is None and self.flipped_labels == 0

    def path(self, folder: Path, train: Path) -> Path:
        """Where the subset of the shard set ``train`` lies, or ``train`` itself if it is the whole of it."""
        if self.whole:
            return train
        groups = "all" if self.train_groups is None else self.train_groups
        return folder / f"{train.name}-groups-{groups}-flipped-{self.flipped_labels:g}" / "train"


def take(subset: Subset, train: Path, folder: Path) -> Path:
    """The shard set of the subset, packed if it is not there. InputError if ``train`` has fewer groups, or if a class
    is missing from those that are kept."""
    from data_shards.pack import pack

    out = subset.path(folder, train)
    if subset.whole:
        return out
    shards = ShardSet.open(train)
    source, note = {"train": shards.digest, **asdict(subset)}, out.parent / "source.json"
    if (out / MANIFEST).is_file() and note.is_file() and json.loads(note.read_text(encoding="utf-8")) == source:
        return out
    if shards.split != "train":
        raise InputError(f"{train} is a {shards.split} set; train_groups and flipped_labels want a training set")
    rows = kept(shards, subset.train_groups)
    faces = _faces(shards, rows, flipped(shards, rows, subset.flipped_labels))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as root:  # /tmp may be small, or memory
        _extract(shards, rows, faces["path"].tolist(), Path(root))
        pack(faces, root, out.parent, workers=1, decode=False)
    write_json(note, source)
    return out


def rows_in(whole: ShardSet, shards: ShardSet) -> np.ndarray:
    """Which sample of ``whole`` has the image of each sample of ``shards``, int64 (n,), whatever their labels; KeyError
    if an image is not in it."""
    ours, theirs = (list(zip(*(each.column(name) for name in SAME_IMAGE), strict=True)) for each in (shards, whole))
    place = {identity: row for row, identity in enumerate(theirs)}
    return np.array([place[identity] for identity in ours])


def kept(shards: ShardSet, groups: int | None) -> np.ndarray:
    """Indices, int64 and rising, of the samples of the first ``groups`` independent groups in a fixed random order."""
    from data_shards.order import permutation
    from data_shards.splits import components

    component = components(shards.column("group"))
    count = int(component.max()) + 1
    if groups is None:
        return np.arange(len(shards))
    if groups > count:
        raise InputError(f"train_groups={groups}, but {shards.path} has {count} independent groups; ask for fewer")
    return np.flatnonzero(np.isin(component, permutation(count, key=0)[:groups]))


def flipped(shards: ShardSet, rows: np.ndarray, share: float) -> np.ndarray:
    """Which of ``rows`` get the other label, bool: ``share`` of them, rounded, in a fixed random order."""
    from data_shards.order import permutation

    order = permutation(len(shards), key=1)
    chosen = order[np.isin(order, rows)][: round(share * len(rows))]
    return np.isin(rows, chosen)


def _faces(shards: ShardSet, rows: np.ndarray, flip: np.ndarray) -> Any:
    import pandas as pd

    columns = {name: shards.column(name)[rows] for name in ("label", "method", "group", "dataset", "extension")}
    fake = (columns["label"] == LABELS[1]) ^ flip
    method = np.where(flip, np.where(fake, "flipped", PRISTINE), columns["method"])
    return pd.DataFrame(
        {
            "path": [f"{row:09d}.{extension}" for row, extension in zip(rows, columns["extension"], strict=True)],
            "label": np.where(fake, LABELS[1], LABELS[0]),
            "method": method,
            "group": columns["group"],
            "dataset": columns["dataset"],
            "split": "train",
            TRUE_LABEL: columns["label"],
        }
    )


def _extract(shards: ShardSet, rows: np.ndarray, names: list[str], folder: Path) -> None:
    """Write the packed bytes of the images, each checked against its hash."""
    from data_shards.reader import SampleReader

    reader = SampleReader(shards, image_size=1)
    try:
        for row, name in zip(rows, names, strict=True):
            (folder / name).write_bytes(reader.read(int(row)))
    finally:
        reader.close()
