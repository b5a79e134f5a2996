"""Pictures that a data set holds more than once: neither paths nor groups tell, only the bytes do."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from data_shards.manifest import ShardSet
from data_shards.table import NewFile, Shuffle

log = logging.getLogger(__name__)

WRONG = {
    "split": "are in more than one split, which leaks: join their groups with |, or leave rows out",
    "label": "are real in one row and fake in another: correct the table, or leave rows out",
}


def warn(sets: Iterable[ShardSet], new_file: NewFile) -> None:
    """Log a warning if pictures of these sets lie in several splits, and one if some have both labels.

    No error: public data sets have a few, and that they are equal is known only when they have been packed. As in the
    packing of the rows, a part of them is in memory and the others are on the disk.
    """
    import pyarrow as pa

    shuffle = Shuffle("sha256", 0, new_file)
    for shards in sets:
        for batch in shards.batches(["sha256", "label", "path"]):
            shuffle.add(batch.append_column("split", pa.array([shards.split] * len(batch))))
    pictures, examples = Counter[str](), {}
    for table in shuffle.tables():
        rows = table.select(["sha256", "label", "path", "split"]).to_pandas()
        rows = rows[rows["sha256"].duplicated(keep=False)]
        for column in WRONG:
            wrong = rows[rows.groupby("sha256")[column].transform("nunique") > 1]
            if len(wrong):
                pictures[column] += wrong["sha256"].nunique()
                same = wrong[wrong["sha256"] == wrong["sha256"].iloc[0]].drop_duplicates(column)
                examples.setdefault(column, " and ".join(same["path"]))
    for column, example in examples.items():
        log.warning("%d pictures (the same bytes) %s; such as %s", pictures[column], WRONG[column], example)
