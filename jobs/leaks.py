"""No group of the training or validation set may be in any other set: scores on it would not be of unseen people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import InputError

if TYPE_CHECKING:
    from data_shards.manifest import ShardSet
    from jobs.plan import Row


def check(sets: Mapping[str, Path]) -> None:
    """Raise InputError if ``train`` or ``validation`` shares a group with another of these shard sets."""
    from data_shards.manifest import ShardSet

    ids = {name: _group_ids(ShardSet.open(path)) for name, path in sets.items()}
    for first in ("train", "validation"):
        for second in ids:
            shared = ids[first] & ids[second] if first != second else set()
            if shared:
                raise InputError(
                    f"group {min(shared)!r} is in both {first!r} and {second!r}, which would leak; pack the faces "
                    "again with python -m data_shards.pack, which keeps groups together; where equal names are of "
                    "different people, begin them with the name of the dataset"
                )


def check_row(row: Row) -> None:
    """The same for the sets that a row is trained, selected and scored on."""
    sets = {name: Path(path) for name, path in row.score.items()}
    check(sets | {name: Path(row.finetune[name]) for name in ("train", "validation")})


def _group_ids(shards: ShardSet) -> set[str]:
    return {identity for group in set(shards.column("group")) for identity in str(group).split("|")}
