"""The face table: which images there are, what they show, and what must never straddle a split.

One row per image, columns ``path, label, method, group, dataset`` and, where they are known, ``split`` and ``video``;
other columns are carried along. See docs/DESIGN.md for their meaning.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.command import InputError, nearest
from data_shards.table import ROW, NewFile, Shuffle, Tally, listed_twice

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LABELS = ("real", "fake")  # position = the number of the class
SPLITS = ("train", "validation", "test")
COLUMNS = ("path", "label", "method", "group", "dataset")
TEXT = (*COLUMNS, "split", "video")  # "NA" and "007" stay what they are
PRISTINE = "pristine"  # the method of every real image
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
MAX_PIXELS = 2**26  # a face is far smaller; a larger picture is a decompression bomb or a mistake
MAX_BYTES = 2**28


def read_faces(
    source: str | Path, *, root: str | Path | None = None, dataset: str | None = None, layout: str | None = None
) -> pd.DataFrame:
    """Face table of a CSV file, a Parquet file, a folder tree, or a public dataset in its own layout.

    A folder tree is ``SOURCE/real/…`` and ``SOURCE/fake/[METHOD/]…``. A folder below that is the group (a video); an
    image that lies directly there is its own group, named by its stem, so that a real image and the fakes of the same
    stem tie. Groups are named ``DATASET:NAME``: equal names in trees of two datasets do not tie. Where ``real/`` has
    folders, images directly in ``fake/X/`` are an error: X may be a video whose METHOD was left out, and its frames
    would be groups of their own.

    Args:
        source: the table, or the folder.
        root: folder that relative paths of a table start from; default: the folder of the table.
        dataset: name of the dataset for a table without that column; default for a folder: its name.
        layout: name of an adapter of ``data_shards.adapters`` that reads the source.

    Returns:
        COLUMNS, then ``split`` if given, then the other columns; ``path`` is absolute. Not yet checked: see
        ``check_faces``.
    """
    import pandas as pd

    from data_shards.sources import open_faces

    return pd.concat(open_faces(source, root=root, dataset=dataset, layout=layout).batches, ignore_index=True)


def check_faces(faces: pd.DataFrame, root: str | Path = ".") -> None:
    """Raise InputError, naming row and value, on whatever must not go into a shard set.

    Checks columns, values, files (present, not empty, a known kind, listed once), given videos (complete, each of one
    label, method, dataset and group) and given splits (complete, both classes in each, no group in two). Pictures are
    decoded when they are packed: see ``check_image``.
    """
    from data_shards.sources import arrow_table, of_frame

    check_columns(faces.columns)
    source, checks = of_frame(faces), Checks(root, io.BytesIO)
    for batch in source.batches:
        if checks.look(batch):
            checks.count(arrow_table(batch, source.types))
    checks.check_values()
    twice = faces["path"].duplicated()
    if twice.any():
        raise listed_twice(row := _first(twice), faces["path"].iloc[row])
    checks.check_rest()


def check_columns(names: Iterable[str]) -> None:
    """Raise InputError if one of COLUMNS is missing."""
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise InputError(f"the face table has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")


class Checks:
    """What ``check_faces`` checks, of a table that comes in batches; only whether paths are listed twice is left to
    the caller. Of each kind of mistake the first row is named, and the kinds come in a fixed order, as if the table had
    been looked at as a whole. Counts per group are kept in memory, the videos in files."""

    def __init__(self, root: str | Path, new_file: NewFile) -> None:
        from tqdm import tqdm

        self._root = os.path.abspath(root)
        self._rows = 0
        self._value = (len(_KINDS), "")  # the gravest kind of wrong value, and its message
        self._later: dict[str, str] = {}  # messages about videos, splits and files
        self._groups: Tally | None = None
        self._videos = Shuffle("video", 0, new_file)
        self._bar = tqdm(desc="looking for files", unit="img", leave=False, disable=not sys.stderr.isatty())

    def look(self, faces: pd.DataFrame) -> bool:
        """Check the values and files of the next rows; whether all values so far can go into a shard set."""
        first, self._rows = self._rows, self._rows + len(faces)
        self._value = min([self._value, *_wrong_values(faces, first)], key=lambda found: found[0])
        if self._value[1]:
            return False
        for name, find in (("video", _wrong_video), ("split", _wrong_split)):
            if name in faces.columns and name not in self._later and (message := find(faces, first)):
                self._later[name] = message
        if not self._later and (message := _wrong_file(faces["path"].tolist(), first, self._root)):
            self._later["file"] = message
        self._bar.update(len(faces))
        return True

    def count(self, table: pa.Table) -> None:
        """Remember which groups and videos the rows belong to (see ``sources.arrow_table``)."""
        if self._groups is None:
            self._groups = Tally(name for name in ("group", "label", "method", "split") if name in table.column_names)
        self._groups.add(table)
        if "video" in table.column_names:
            self._videos.add(table.group_by(["video", "label", "method", "dataset", "group"]).aggregate([]))

    def check_values(self) -> None:
        """InputError if a value was wrong, or there is no row."""
        self._bar.close()
        if not self._rows:
            raise InputError("the face table has no rows")
        if self._value[1]:
            raise InputError(self._value[1])

    def check_rest(self) -> pd.DataFrame:
        """InputError on wrong videos, splits or files, else how many images each group has: columns ``group, label,
        method[, split]`` and ``images``, groups in order of first appearance."""
        assert self._groups is not None
        groups = self._groups.frame()
        self._raise("video")
        _check_videos(self._videos, groups["group"])
        self._raise("split")
        if "split" in groups.columns:
            check_splits(groups)
        self._raise("file")
        return groups

    def _raise(self, kind: str) -> None:
        if kind in self._later:
            raise InputError(self._later[kind])


def check_splits(faces: pd.DataFrame) -> None:
    """Raise InputError unless ``split`` is complete, keeps groups together and has both classes in every split."""
    from data_shards.splits import components

    if message := _wrong_split(faces, 0):
        raise InputError(message)
    component = components(faces["group"])
    splits = faces["split"].groupby(component).nunique()
    if (splits > 1).any():
        inside = faces[component == splits.index[splits > 1][0]]
        names = [name for name in SPLITS if (inside["split"] == name).any()]
        group = inside["group"].iloc[0]
        raise InputError(f"group {group!r} is in the splits {' and '.join(names)}; with all it ties it needs one")
    for split, rows in faces.groupby("split", sort=True):
        for label in LABELS:
            if not (rows["label"] == label).any():
                raise InputError(f"split {split!r} has no {label} image; each split needs real and fake ones")


def check_image(data: bytes, extension: str, *, decode: bool = True) -> tuple[int, int]:
    """(height, width) of an encoded image that is whole; ValueError with the reason if it is not.

    The entropy-coded stream of a JPEG is decoded, at an eighth of the size: this finds what was cut, zeroed or mixed
    up at two thirds of the cost of the full picture. ``decode=False`` looks at the header and for the end marker only:
    it finds what was cut, at a hundredth of the cost. Other kinds are always decoded.
    """
    if not data:
        raise ValueError("the file is empty")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are more than the limit of {MAX_BYTES}")
    if FORMATS[extension] == "JPEG" and data.startswith(b"\xff\xd8"):
        return _check_jpeg(data, decode)
    return _check_by_pillow(data, FORMATS[extension])


def _check_jpeg(data: bytes, decode: bool) -> tuple[int, int]:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width)
        if decode:
            simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
        elif not data.endswith(b"\xff\xd9") and b"\xff\xd9" not in data[data.rfind(b"\xff\xda") :]:
            raise ValueError("it has no end marker")  # of the image, after the last start of a scan
    except ValueError as error:
        raise ValueError(f"not a readable image: {error}") from None
    return height, width


def _check_by_pillow(data: bytes, kind: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values()))) as image:
            width, height = image.size
            if image.format != kind:
                raise ValueError(f"the content is {image.format}, the name says {kind}")
            _check_pixels(height, width)
            check_depth(image.mode)
            image.verify()  # the checksums of a PNG, to its end; leaves the image unusable
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on broken files
        raise ValueError(f"not a readable image: {error}") from None
    return height, width


def check_depth(mode: str) -> None:
    """ValueError if pictures of this mode of Pillow (I, I;16, I;16B, F) are not what models are trained on."""
    if mode.startswith(("I", "F")):
        raise ValueError(f"mode {mode} has more than 8 bits a channel; convert it to 8")


def _check_pixels(height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")


_KINDS = (*COLUMNS, "unknown label", "method of the other label", "id of a group")
"""Of wrong values, in the order in which they are named."""


def _wrong_values(faces: pd.DataFrame, first: int) -> Iterator[tuple[int, str]]:
    """(position in _KINDS, message) of the first row of each kind; ``first`` is the number of rows before."""
    empty = {name: faces[name].isna() | (faces[name] == "") for name in COLUMNS}
    empty = {name: rows for name, rows in empty.items() if rows.any()}
    if empty:  # the other kinds cannot be told
        for name, rows in empty.items():
            yield COLUMNS.index(name), f"{_place(faces, _first(rows), first)} has no {name}; every image needs one"
        return
    bad = ~faces["label"].isin(LABELS)
    if bad.any():
        row = _first(bad)
        known = ", ".join(LABELS)
        yield len(COLUMNS), f"{_place(faces, row, first)} has label {faces['label'].iloc[row]!r}; known: {known}"
    crossed = (faces["label"] == "real") != (faces["method"] == PRISTINE)
    if crossed.any():
        row = _first(crossed)
        label, method = faces["label"].iloc[row], faces["method"].iloc[row]
        rule = f"real images, and only they, are {PRISTINE!r}"
        yield len(COLUMNS) + 1, f"{_place(faces, row, first)} is {label} with method {method!r}; {rule}"
    unclear = [name for name in faces["group"].unique() if not all(map(_is_id, str(name).split("|")))]
    if unclear:
        row = _first(faces["group"].isin(unclear))
        group, rule = faces["group"].iloc[row], "join ids with | alone, as in 'a|b'"
        reason = "where an id is empty or has blanks around it"
        yield len(COLUMNS) + 2, f"{_place(faces, row, first)} has group {group!r}, {reason}; {rule}"


def _is_id(text: str) -> bool:
    """Whether all who read it agree what it names."""
    return text != "" and text == text.strip()


def _place(faces: pd.DataFrame, row: int, first: int) -> str:
    """Number and path of a row: the number alone does not find it where only a part of the table is taken."""
    path = faces["path"].iloc[row]
    return f"row {first + row + 1} ({path})" if isinstance(path, str) and path else f"row {first + row + 1}"


def _wrong_video(faces: pd.DataFrame, first: int) -> str | None:
    empty = faces["video"].isna() | (faces["video"] == "")
    if not empty.any():
        return None
    return f"{_place(faces, _first(empty), first)} has no video while others have; give all or none"


def _wrong_split(faces: pd.DataFrame, first: int) -> str | None:
    bad = ~faces["split"].isin(SPLITS)
    if not bad.any():
        return None
    row = _first(bad)
    value, place = faces["split"].iloc[row], _place(faces, row, first)
    if value is None or value != value or value == "":
        return f"{place} has no split while others have; give all or none"
    return f"{place} has split {value!r}{nearest(str(value), SPLITS)}"


def _check_videos(videos: Shuffle, groups: pd.Series) -> None:
    """Raise InputError if a video has several labels, methods, datasets or components of ``groups``, which are all."""
    import pandas as pd

    from data_shards.splits import components

    several = []
    for table in videos.tables():
        rows = table.drop_columns([ROW]).to_pandas().drop_duplicates()
        several.append(rows[rows["video"].duplicated(keep=False)])
    if not several or not any(map(len, several)):
        return
    rows = pd.concat(several)
    component = pd.Series(components(groups), groups)
    component = component[~component.index.duplicated()]
    kinds = rows[["label", "method", "dataset"]].assign(group=rows["group"].map(component))
    for name, many in (kinds.groupby(rows["video"]).nunique() > 1).items():
        if many.any():
            raise InputError(
                f"video {many.index[many][0]!r} has more than one {name}; give each manipulated version of a "
                "video a name of its own"
            )


def _wrong_file(paths: list[str], first: int, root: str) -> str | None:
    for row, path in enumerate(paths, start=first + 1):
        if os.path.splitext(path)[1].lower() not in FORMATS:
            return f"row {row}: {path} is none of {', '.join(FORMATS)}; convert it without loss, to .png"
        if not path.isprintable() and re.search(r"[\x00-\x1f]", path):
            return f"row {row}: the path {path!r} has control characters; rename the file"
        file = path if path.startswith("/") else f"{root}/{path}"
        try:
            size = os.stat(file).st_size
        except OSError:
            return f"row {row}: there is no file {file}; is root right?"
        if size == 0:
            return f"row {row}: {path} is empty; remove the row or restore the file"
    return None


def _first(mask: Any) -> int:
    return int(np.flatnonzero(np.asarray(mask))[0])
