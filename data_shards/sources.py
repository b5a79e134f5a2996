"""Where face tables come from: CSV and Parquet files, folder trees, and public datasets in their own layouts.

All are read in batches, and never held as a whole.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import InputError, nearest
from data_shards.faces import COLUMNS, FORMATS, LABELS, PRISTINE, TEXT, check_columns
from data_shards.table import ROWS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


OTHER_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".pgm", ".ppm", ".tif", ".tiff")
"""Kinds that are not read: of a folder tree they are not left out without a word."""


@dataclass(frozen=True)
class FaceBatches:
    """A face table that is read once, from the front."""

    types: dict[str, pa.DataType]
    """Of each column, in order: that of all its values."""
    batches: Iterable[pd.DataFrame]


def open_faces(
    source: str | Path, *, root: str | Path | None = None, dataset: str | None = None, layout: str | None = None
) -> FaceBatches:
    """What ``faces.read_faces`` reads, with its arguments, in batches of at most ROWS rows."""
    source = Path(source)
    if layout is not None:
        return _open_layout(source, layout, root, dataset)
    if source.is_dir():
        if root is not None:
            raise InputError(f"{source} is a folder: root belongs to a CSV or Parquet table; leave it out")
        rows = _walk_tree(source, dataset or source.resolve().name)
        return _of_rows(rows, source, f"{source} holds no image; known kinds: {', '.join(FORMATS)}")
    if not source.is_file():
        raise InputError(f"there is no face table or folder at {source}")
    found = _open_table(source)
    if dataset is not None:
        if "dataset" in found.types:
            raise InputError(f"{source} has a column 'dataset'; leave out dataset={dataset}")
        found = _with_dataset(found, dataset)
    missing = [name for name in COLUMNS if name not in found.types]
    if missing:
        raise InputError(f"{source} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    return _with_absolute_paths(found, source.parent if root is None else root)


def of_frame(faces: pd.DataFrame) -> FaceBatches:
    """The batches of a table that is in memory."""
    import pyarrow as pa

    check_columns(faces.columns)
    types = {name: pa.string() for name in faces.columns}
    carried = [name for name in faces.columns if name not in (*COLUMNS, "split")]
    types |= {field.name: field.type for field in pa.Schema.from_pandas(faces[carried], preserve_index=False)}
    return FaceBatches(types, (faces.iloc[first : first + ROWS] for first in range(0, len(faces), ROWS)))


def only_dataset(faces: FaceBatches, dataset: str, source: Path) -> FaceBatches:
    """The rows of one dataset; InputError at the end if there is none."""

    def batches() -> Iterator[pd.DataFrame]:
        known: set[str] = set()
        for batch in faces.batches:
            known.update(batch["dataset"])
            yield batch[batch["dataset"] == dataset]
        if dataset not in known:
            raise InputError(f"{source} has no dataset {dataset!r}{nearest(dataset, sorted(known))}")

    return FaceBatches(faces.types, batches())


def arrow_table(faces: pd.DataFrame, types: Mapping[str, pa.DataType]) -> pa.Table:
    """A batch whose values have been checked, with the types of the whole table."""
    import pyarrow as pa

    columns = {}
    for name, kind in types.items():
        values = faces[name]
        if values.dtype == object and name in (*COLUMNS, "split"):
            values = values.astype("str")
        columns[name] = pa.array(values, from_pandas=True).cast(kind)
    return pa.table(columns)


def _open_layout(source: Path, layout: str, root: str | Path | None, dataset: str | None) -> FaceBatches:
    from data_shards.adapters import ADAPTERS

    if layout not in ADAPTERS:
        raise InputError(f"there is no layout {layout!r}{nearest(layout, list(ADAPTERS))}")
    if dataset is not None:
        raise InputError(f"layout={layout} names its datasets; leave out dataset={dataset}")
    if not source.exists():
        raise InputError(f"there is nothing at {source}")
    if source.is_dir() and root is not None:
        raise InputError(f"{source} is a folder: root belongs to a table or JSON file; leave it out")
    base = root or (source if source.is_dir() else source.parent)
    return _of_rows(ADAPTERS[layout](source), base, "the dataset's lists name no image")


def _of_rows(rows: Iterator[dict[str, str]], base: str | Path, nothing: str) -> FaceBatches:
    """Of one dict per image, all with the same keys; ``nothing`` is the error if there is none."""
    import pandas as pd
    import pyarrow as pa

    first = next(rows, None)
    if first is None:
        raise InputError(nothing)
    names = [*COLUMNS, *(name for name in first if name not in COLUMNS)]

    def batches() -> Iterator[pd.DataFrame]:
        every = chain([first], rows)
        while part := list(islice(every, ROWS)):
            yield pd.DataFrame(part, columns=names)

    return _with_absolute_paths(FaceBatches(dict.fromkeys(names, pa.string()), batches()), base)


def _walk_tree(folder: Path, dataset: str) -> Iterator[dict[str, str]]:
    videos = ""  # a folder of real images
    seen: dict[tuple[int, int], str] = {}
    unread, example = 0, ""
    for label in LABELS:
        top = folder / label
        if not top.is_dir():
            raise InputError(f"{folder} has no folder {label!r}; a folder tree is real/… and fake/[METHOD/]…")
        for parent, folders, files in os.walk(top, onerror=_unreadable, followlinks=True):
            _visit_once(parent, seen)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = Path(parent).relative_to(top).parts
            method, above = (PRISTINE, below) if label == "real" else (below[0] if below else "unknown", below[1:])
            images = [name for name in sorted(files) if _is_one_of(FORMATS, name)]
            others = [name for name in files if _is_one_of(OTHER_PICTURES, name)]
            if others:
                unread, example = unread + len(others), example or os.path.join(parent, min(others))
            if images and label == "real" and below:
                videos = videos or parent
            if images and label == "fake" and videos and len(below) == 1:  # each frame would be a group of its own
                raise InputError(
                    f"is {parent} a method or a video? {videos} is a video, so fakes are fake/METHOD/VIDEO/…"
                )
            for name in images:
                group = f"{dataset}:{'/'.join(above) or os.path.splitext(name)[0]}"  # another tree has other people
                path = os.path.abspath(os.path.join(parent, name))
                if re.search("[\ud800-\udfff]", path):  # how Python writes bytes that are not UTF-8
                    raise InputError(f"the file name {path!r} is not UTF-8; rename the file")
                yield {"path": path, "label": label, "method": method, "group": group, "dataset": dataset}
    if unread:
        raise InputError(
            f"{folder} has {unread} pictures of kinds that are not read, such as {example}; convert them without loss, "
            "to .png, or move them out"
        )


def _unreadable(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}")


def _visit_once(folder: str, seen: dict[tuple[int, int], str]) -> None:
    """InputError if the folder is one of those ``seen``: a link gives its images a second path, or no end of them."""
    status = os.stat(folder)
    first = seen.setdefault((status.st_dev, status.st_ino), folder)
    if first != folder:
        raise InputError(f"{folder} is the folder {first} once more; remove the link")


def _is_one_of(kinds: Container[str], name: str) -> bool:
    return os.path.splitext(name)[1].lower() in kinds and not name.startswith(".")


def _open_table(source: Path) -> FaceBatches:
    readers = {".csv": _open_csv, ".parquet": _open_parquet, ".pq": _open_parquet}
    if source.suffix.lower() not in readers:
        raise InputError(f"{source}: a face table is .csv or .parquet")

    def batches(found: FaceBatches) -> Iterator[pd.DataFrame]:
        with _named(source):
            for batch in found.batches:
                yield _as_text(batch)

    with _named(source):
        found = readers[source.suffix.lower()](source)
    return FaceBatches(found.types, batches(found))


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Errors of reading name the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ParserError, ArrowInvalid, UnicodeDecodeError
        raise InputError(f"{source} cannot be read: {error}") from None


def _as_text(faces: pd.DataFrame) -> pd.DataFrame:
    """With the columns of TEXT as text, empty where there is no value."""
    for name in TEXT:
        if name in faces.columns:
            values = faces[name]
            if values.dtype != "str":
                values = values.map(str, na_action="ignore").astype("str")
            faces[name] = values.fillna("")
    return faces


def _with_dataset(faces: FaceBatches, dataset: str) -> FaceBatches:
    import pyarrow as pa

    return FaceBatches(
        {**faces.types, "dataset": pa.string()}, (batch.assign(dataset=dataset) for batch in faces.batches)
    )


def _with_absolute_paths(faces: FaceBatches, base: str | Path) -> FaceBatches:
    """The known columns first, ``path`` absolute."""
    base = os.path.abspath(base)
    names = [name for name in (*COLUMNS, "split") if name in faces.types]
    names += [name for name in faces.types if name not in names]

    def batches() -> Iterator[pd.DataFrame]:
        for batch in faces.batches:
            paths = [os.path.normpath(os.path.join(base, path)) if path else "" for path in batch["path"]]
            yield batch[names].assign(path=paths)

    return FaceBatches({name: faces.types[name] for name in names}, batches())


def _open_csv(file: Path) -> FaceBatches:
    """The type of a carried column is the one that pandas gives it when it reads the whole file at once: so numbers
    stay text where one value is none (or empty), or has more digits than 64 bits hold. A first pass finds out."""
    import pandas as pd
    import pyarrow as pa

    text = dict.fromkeys(TEXT, str)
    names = list(pd.read_csv(file, nrows=0, dtype=text, keep_default_na=False).columns)
    samples: dict[str, str] = {}
    if carried := [name for name in names if name not in TEXT]:
        with pd.read_csv(file, chunksize=ROWS, dtype=text, keep_default_na=False, low_memory=False) as chunks:
            for chunk in chunks:
                samples = {name: _sample_of(samples.get(name), chunk[name]) for name in carried}
    kinds = {name: _CSV_TYPES.get(sample, "str") for name, sample in samples.items()}
    arrow = {"int64": pa.int64(), "uint64": pa.uint64(), "float64": pa.float64(), "bool": pa.bool_()}

    def batches() -> Iterator[pd.DataFrame]:
        with pd.read_csv(file, chunksize=ROWS, dtype={**text, **kinds}, keep_default_na=False) as chunks:
            yield from chunks

    return FaceBatches({name: arrow.get(kinds.get(name, "str"), pa.string()) for name in names}, batches())


_CSV_TYPES = {"0": "int64", "-1": "int64", str(2**64 - 1): "uint64", "0.5": "float64", "True": "bool"}
"""A value of a column in place of all of them → the type that they have together. (-1: an integer that is negative
cannot be in one column with one that needs 64 bits.) Any other: text."""
_SAMPLES = {"int64": "0", "uint64": str(2**64 - 1), "float64": "0.5", "bool": "True"}


def _sample_of(before: str | None, values: pd.Series) -> str:
    """The value that stands for those which ``before`` stands for and these: put in front of further ones, it has the
    effect of all on the type that pandas infers."""
    import pandas as pd

    own = _SAMPLES.get(str(values.dtype), "text")
    if own == "0" and (values < 0).any():
        own = "-1"
    if before in (None, own, "text"):
        return before or own
    rows = [before, *(values if own == "text" else [own])]  # text may be numbers of too many digits: floats in company
    both = pd.read_csv(io.StringIO(pd.Series(rows).to_csv(index=False)), keep_default_na=False, low_memory=False)
    return _sample_of(None, both.iloc[:, 0])


def _open_parquet(file: Path) -> FaceBatches:
    """As pandas reads the whole file at once: a column of integers is one of floats where a value is missing (unless
    pandas wrote it as nullable). A first pass finds out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def frames(columns: list[str] | None, floats: set[str]) -> Iterator[pd.DataFrame]:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            for batch in parquet.iter_batches(ROWS, columns=columns):
                table = pa.Table.from_batches([batch])
                for name in floats:
                    place = table.column_names.index(name)
                    table = table.set_column(place, name, table[name].cast(pa.float64(), safe=False))
                yield table.replace_schema_metadata(schema.metadata).to_pandas()

    schema = pq.read_schema(file)
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    floats: set[str] = set()
    for frame in frames(integers, set()) if integers else ():
        floats |= {name for name in frame.columns if frame[name].dtype.kind == "f"}
    names = schema.empty_table().to_pandas().columns  # without what is the index of the table
    types = {name: pa.float64() if name in floats else schema.field(name).type for name in names}
    text = {name: pa.string() for name in TEXT if name in types}
    return FaceBatches({**types, **text}, frames(None, floats))
