"""The face table: which images there are, what they show, and what must never straddle a split.

One row per image, columns ``path, label, method, group, dataset`` and, where they are known, ``split`` and ``video``;
other columns are carried along. See docs/DESIGN.md for their meaning.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.command import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

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
    stem tie.

    Args:
        source: the table, or the folder.
        root: folder that relative paths of a table start from; default: the folder of the table.
        dataset: name of the dataset for a table without that column; default for a folder: its name.
        layout: name of an adapter of ``data_shards.adapters`` that reads the source.

    Returns:
        COLUMNS, then ``split`` if given, then the other columns; ``path`` is absolute. Not yet checked: see
        ``check_faces``.
    """
    source = Path(source)
    if layout is not None:
        return _read_layout(source, layout, root, dataset)
    if source.is_dir():
        if root is not None:
            raise InputError(f"{source} is a folder: root belongs to a CSV or Parquet table; leave it out")
        return _read_tree(source, dataset or source.resolve().name)
    if not source.is_file():
        raise InputError(f"there is no face table or folder at {source}")
    faces = _read_table(source)
    if dataset is not None:
        if "dataset" in faces.columns:
            raise InputError(f"{source} has a column 'dataset'; leave out dataset={dataset}")
        faces["dataset"] = dataset
    missing = [name for name in COLUMNS if name not in faces.columns]
    if missing:
        raise InputError(f"{source} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    return _ordered(_with_absolute_paths(faces, source.parent if root is None else root))


def check_faces(faces: pd.DataFrame, root: str | Path = ".") -> None:
    """Raise InputError, naming row and value, on whatever must not go into a shard set.

    Checks columns, values, files (present, not empty, a known kind, listed once), given videos (complete, each of one
    label, method, dataset and group) and given splits (complete, both classes in each, no group in two). Pictures are
    decoded when they are packed: see ``check_image``.
    """
    missing = [name for name in COLUMNS if name not in faces.columns]
    if missing:
        raise InputError(f"the face table has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    if not len(faces):
        raise InputError("the face table has no rows")
    _check_values(faces)
    if "video" in faces.columns:
        _check_videos(faces)
    if "split" in faces.columns:
        check_splits(faces)
    _check_files(faces, os.path.abspath(root))


def check_splits(faces: pd.DataFrame) -> None:
    """Raise InputError unless ``split`` is complete, keeps groups together and has both classes in every split."""
    from data_shards.splits import components

    bad = ~faces["split"].isin(SPLITS)
    if bad.any():
        row = _first(bad)
        value = faces["split"].iloc[row]
        if value is None or value != value or value == "":
            raise InputError(
                f"row {row + 1} ({faces['path'].iloc[row]}) has no split while others have; give all or none"
            )
        raise InputError(f"row {row + 1} has split {value!r}{nearest(str(value), SPLITS)}")
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
            image.verify()  # the checksums of a PNG, to its end; leaves the image unusable
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on broken files
        raise ValueError(f"not a readable image: {error}") from None
    return height, width


def _check_pixels(height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")


def _read_layout(source: Path, layout: str, root: str | Path | None, dataset: str | None) -> pd.DataFrame:
    from data_shards.adapters import ADAPTERS

    if layout not in ADAPTERS:
        raise InputError(f"there is no layout {layout!r}{nearest(layout, list(ADAPTERS))}")
    if dataset is not None:
        raise InputError(f"layout={layout} names its datasets; leave out dataset={dataset}")
    if not source.exists():
        raise InputError(f"there is nothing at {source}")
    if source.is_dir() and root is not None:
        raise InputError(f"{source} is a folder: root belongs to a table or JSON file; leave it out")
    return _with_absolute_paths(ADAPTERS[layout](source), root or (source if source.is_dir() else source.parent))


def _with_absolute_paths(faces: pd.DataFrame, base: str | Path) -> pd.DataFrame:
    base = os.path.abspath(base)
    faces["path"] = [os.path.normpath(os.path.join(base, path)) if path else "" for path in faces["path"]]
    return faces


def _read_table(source: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if source.suffix.lower() in (".parquet", ".pq"):
            faces = pd.read_parquet(source)
        elif source.suffix.lower() == ".csv":
            # Other carried columns may turn into numbers.
            faces = pd.read_csv(source, dtype=dict.fromkeys(TEXT, str), keep_default_na=False)
        else:
            raise InputError(f"{source}: a face table is .csv or .parquet")
    except (OSError, ValueError) as error:  # ParserError, ArrowInvalid, UnicodeDecodeError
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} cannot be read: {error}") from None
    for name in TEXT:
        if name in faces.columns:
            faces[name] = ["" if pd.isna(value) else str(value) for value in faces[name]]
    return faces


def _read_tree(folder: Path, dataset: str) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for label in LABELS:
        top = folder / label
        if not top.is_dir():
            raise InputError(f"{folder} has no folder {label!r}; a folder tree is real/… and fake/[METHOD/]…")
        for parent, folders, files in os.walk(top, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = Path(parent).relative_to(top).parts
            method, above = (PRISTINE, below) if label == "real" else (below[0] if below else "unknown", below[1:])
            for name in sorted(files):
                stem, extension = os.path.splitext(name)
                if extension.lower() in FORMATS and not name.startswith("."):
                    group = "/".join(above) or stem
                    path = os.path.abspath(os.path.join(parent, name))
                    if re.search("[\ud800-\udfff]", path):  # how Python writes bytes that are not UTF-8
                        raise InputError(f"the file name {path!r} is not UTF-8; rename the file")
                    rows.append({"path": path, "label": label, "method": method, "group": group, "dataset": dataset})
    if not rows:
        raise InputError(f"{folder} holds no image; known kinds: {', '.join(FORMATS)}")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _ordered(faces: pd.DataFrame) -> pd.DataFrame:
    known = [name for name in (*COLUMNS, "split") if name in faces.columns]
    return faces[known + [name for name in faces.columns if name not in known]].reset_index(drop=True)


def _check_values(faces: pd.DataFrame) -> None:
    for name in COLUMNS:
        empty = faces[name].isna() | (faces[name] == "")
        if empty.any():
            raise InputError(f"row {_first(empty) + 1} has no {name}; every image needs one")
    bad = ~faces["label"].isin(LABELS)
    if bad.any():
        row = _first(bad)
        raise InputError(f"row {row + 1} has label {faces['label'].iloc[row]!r}; known: {', '.join(LABELS)}")
    crossed = (faces["label"] == "real") != (faces["method"] == PRISTINE)
    if crossed.any():
        row = _first(crossed)
        label, method = faces["label"].iloc[row], faces["method"].iloc[row]
        raise InputError(
            f"row {row + 1} is {label} with method {method!r}; real images, and only they, are {PRISTINE!r}"
        )
    twice = faces["path"].duplicated()
    if twice.any():
        row = _first(twice)
        raise InputError(f"row {row + 1} lists {faces['path'].iloc[row]} a second time; remove one of the rows")


def _check_videos(faces: pd.DataFrame) -> None:
    from data_shards.splits import components

    empty = faces["video"].isna() | (faces["video"] == "")
    if empty.any():
        raise InputError(f"row {_first(empty) + 1} has no video while others have; give all or none")
    kinds = faces[["label", "method", "dataset"]].assign(group=components(faces["group"]))
    for name, several in (kinds.groupby(faces["video"]).nunique() > 1).items():
        if several.any():
            raise InputError(
                f"video {several.index[several][0]!r} has more than one {name}; give each manipulated version of a "
                "video a name of its own"
            )


def _check_files(faces: pd.DataFrame, root: str) -> None:
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    paths = tqdm(faces["path"].tolist(), desc="looking for files", unit="img", leave=False, disable=quiet)
    for row, path in enumerate(paths, start=1):
        if os.path.splitext(path)[1].lower() not in FORMATS:
            raise InputError(f"row {row}: {path} is none of {', '.join(FORMATS)}; convert it without loss, to .png")
        if not path.isprintable() and re.search(r"[\x00-\x1f]", path):
            raise InputError(f"row {row}: the path {path!r} has control characters; rename the file")
        file = path if path.startswith("/") else f"{root}/{path}"
        try:
            size = os.stat(file).st_size
        except OSError:
            raise InputError(f"row {row}: there is no file {file}; is root right?") from None
        if size == 0:
            raise InputError(f"row {row}: {path} is empty; remove the row or restore the file")


def _first(mask: Any) -> int:
    return int(np.flatnonzero(np.asarray(mask))[0])
