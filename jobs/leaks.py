"""No group or picture of the training or validation set may be in any other set: scores on it would not be of unseen
people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import InputError

if TYPE_CHECKING:
    import numpy as np

    from data_shards.manifest import ShardSet
    from jobs.plan import Row

log = logging.getLogger(__name__)

MOST_SHARED = 0.01
"""Share of a set's pictures, by their bytes, that may be in the training or validation set as well: public sets have a
few under two names, and that many move a score by about as much at most."""


def check(sets: Mapping[str, Path]) -> None:
    """Raise InputError if ``train`` or ``validation`` shares a group with another of these shard sets, or more than
    MOST_SHARED of its pictures; log a warning if fewer."""
    import numpy as np  # here: a finished row imports nothing heavy

    from data_shards.manifest import ShardSet

    shards = {name: ShardSet.open(path) for name, path in sets.items()}
    pairs = [(first, second) for first in ("train", "validation") for second in sets if second not in ("train", first)]
    ids = {name: _group_ids(found) for name, found in shards.items()}
    for first, second in pairs:
        if shared := ids[first] & ids[second]:
            raise InputError(
                f"group {min(shared)!r} is in both {first!r} and {second!r}, which would leak; pack the faces again "
                "with python -m data_shards.pack, which keeps groups together; where equal names are of different "
                "people, begin them with the name of the dataset"
            )
    # 64 bits of a picture: among 100 million of each set 0.0005 are expected to be equal by chance.
    pictures = {name: np.unique(found.column("xxh3")) for name, found in shards.items()}
    for first, second in pairs:
        shared = np.intersect1d(pictures[first], pictures[second], assume_unique=True)
        if len(shared):
            message = _shared_pictures(first, second, shards[second], shared)
            if len(shared) > MOST_SHARED * len(pictures[second]):
                raise InputError(message)
            log.warning("%s", message)


def check_row(row: Row) -> None:
    """The same for the sets that a row is trained, selected and scored on."""
    sets = {name: Path(path) for name, path in row.score.items()}
    check(sets | {name: Path(row.finetune[name]) for name in ("train", "validation")})


def _group_ids(shards: ShardSet) -> set[str]:
    return {identity for group in set(shards.column("group")) for identity in str(group).split("|")}


def _shared_pictures(first: str, second: str, shards: ShardSet, shared: np.ndarray) -> str:
    row = int((shards.column("xxh3") == shared[0]).argmax())
    key, path = shards.column("key")[row], shards.column("path")[row]
    return (
        f"{len(shared)} of the pictures of {second!r}, such as {key} ({path}), are in {first!r}, too, which would "
        "leak; leave them out of one of the two, or join their groups with | and pack the faces again"
    )
