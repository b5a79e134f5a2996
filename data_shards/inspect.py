"""What is in shard sets: counts, and a contact sheet to look at."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_shards.command import InputError, run
from data_shards.faces import SPLITS
from data_shards.files import atomic
from data_shards.manifest import MANIFEST, ShardSet
from data_shards.remote import url_of

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

STRATUM = ["split", "label", "method", "dataset"]


def open_sets(path: str | Path) -> list[ShardSet]:
    """The shard set at ``path``, or those of the splits below it."""
    path = Path(path)
    if url_of(path) or (path / MANIFEST).exists() or path.name == MANIFEST:
        return [ShardSet.open(path)]
    sets = [ShardSet.open(path / split) for split in SPLITS if (path / split / MANIFEST).exists()]
    if not sets:
        raise InputError(f"there is no shard set at {path}, nor one of {', '.join(SPLITS)} below it")
    return sets


def count(sets: Sequence[ShardSet]) -> pd.DataFrame:
    """One row per split × label × method × dataset: ``images`` and distinct ``groups``."""
    import pandas as pd

    table = pd.concat([_strata(shards) for shards in sets])
    grouped = table.groupby(STRATUM, sort=False)["group"]
    counts = grouped.agg(images="size", groups="nunique").reset_index()
    order = {split: position for position, split in enumerate(SPLITS)}
    return counts.sort_values(STRATUM, key=lambda c: c.map(order) if c.name == "split" else c, ignore_index=True)


def contact_sheet(sets: Sequence[ShardSet], *, columns: int = 8, side: int = 112) -> Image.Image:
    """One line of ``columns`` faces of ``side`` pixels per split × label × method × dataset, under its name.

    The first samples of each are shown: a random choice, for shuffled sets, and always the same.
    """
    from PIL import Image, ImageDraw

    lines = [
        (f"{'  '.join(names)}  ({len(rows)})", [_picture(shards, index, side) for index in rows.index[:columns]])
        for shards in sets
        for names, rows in _strata(shards).groupby(STRATUM)
    ]
    gap, text = 4, 16
    height = side + text + gap
    sheet = Image.new("RGB", (columns * (side + gap) + gap, len(lines) * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, pictures) in enumerate(lines):
        top = gap + number * height
        draw.text((gap, top), title, fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (gap + column * (side + gap), top + text))
    return sheet


def _strata(shards: ShardSet) -> pd.DataFrame:
    import pandas as pd

    values = {name: shards.column(name) for name in ("label", "method", "dataset", "group")}
    return pd.DataFrame({"split": shards.split, **values})


def _picture(shards: ShardSet, index: int, side: int) -> Image.Image:
    import xxhash
    from PIL import Image, ImageOps

    ends = np.cumsum([entry["samples"] for entry in shards.shards])
    shard = int(np.searchsorted(ends, index, side="right"))
    row = index - (int(ends[shard - 1]) if shard else 0)
    offset, length, xxh3 = (int(shards.column(name, shard)[row]) for name in ("offset", "length", "xxh3"))
    with os.fdopen(shards.open_shard(shard), "rb") as file:
        file.seek(offset)
        data = file.read(length)
    if xxhash.xxh3_64_intdigest(data) != xxh3:
        key = shards.column("key", shard)[row]
        raise InputError(f"{shards.location(shard)} {key}: the image is not the packed one; run data_shards.verify")
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.pad(image.convert("RGB"), (side, side), color="white")


@dataclass
class InspectConfig:
    """Print what shard sets hold, by split, label, method and dataset; draw a contact sheet of their faces."""

    path: str
    """Folder of a shard set, or of several (OUT of data_shards.pack)."""
    sheet: str | None = None
    """PNG file to draw the contact sheet to."""
    columns: int = 8
    """Faces per line of the sheet."""


def inspect_command(config: InspectConfig) -> None:
    if config.columns < 1:
        raise InputError(f"columns={config.columns} must be at least 1")
    sets = open_sets(config.path)
    for shards in sets:
        size = shards.manifest["bytes"] / 1e6
        print(
            f"{shards.path}: {len(shards)} images, {shards.manifest['groups']} groups, "
            f"{len(shards.shards)} shards, {size:.1f} MB, digest {shards.digest[:12]}"
        )
    print(count(sets).to_string(index=False))
    if config.sheet:
        with atomic(config.sheet) as temporary:
            contact_sheet(sets, columns=config.columns).save(temporary, "PNG")
        print(f"contact sheet: {config.sheet}")


if __name__ == "__main__":
    run(InspectConfig, inspect_command)
