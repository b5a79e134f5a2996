"""Forge the real faces of a face table: images with known methods and severities, and a face table of all.

    python -m data_shards.forgeries faces=faces.csv out=forged methods='[self-blend, swap]' severities='[0.5, 1]'

**Beware of compression as a clue.** Originals are passed through byte for byte, so that severity 0 is the original.
A forgery of a JPEG or WebP file has been encoded once more than its original, and a detector may learn that instead
of the forgery. ``reencode_originals=true`` removes the clue: every pristine image is then decoded and encoded by the
same encoder at the same quality, and differs from a forgery in the forged region only. Originals stored without loss
(PNG) need no such care, for their forgeries are written without loss.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_shards.command import InputError, nearest, run, to_dict
from data_shards.faces import FORMATS, PRISTINE, check_faces, check_image, check_splits, read_faces
from data_shards.files import atomic, write_json
from data_shards.forge import METHODS, forge, rng_for
from data_shards.splits import components

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class ForgeConfig:
    """Controlled forgeries of the real faces of a face table: images, and a face table of originals and forgeries."""

    faces: str
    """Face table (CSV or Parquet) or folder tree; its real rows are forged, fake rows are left out."""
    out: str
    """Folder to make: original/ (or reencoded/), one folder per method and severity, faces.csv, forgeries.json."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Any of self-blend, swap, resample."""
    severities: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    """From 0 to 1; every face is forged at each. 0 is the original itself, which is always in the table."""
    seed: int = 0
    """With path, method and severity it determines each forgery."""
    quality: int = 92
    """Of the JPEG (4:2:0) or WebP files of forgeries, 1 to 100; a forgery of a PNG is a PNG."""
    reencode_originals: bool = False
    """Encode the originals like the forgeries instead of passing their bytes through: no clue from compression."""
    root: str | None = None
    """Folder that relative paths of the table start from; default: the folder of the table."""


class Job(NamedTuple):
    """One image to write: row of the face table, method, severity, row of the donor (swap only)."""

    row: int
    method: str
    severity: float
    donor: int | None


def forge_faces(config: ForgeConfig) -> Path:
    """Write the forgeries of ``config.faces``; returns the path of the new face table.

    Its columns: those of the input, ``severity`` (0 for originals), ``source`` and ``donor`` (paths of the input, the
    latter empty without a donor). ``group`` of a swap is ``group of the face|group of the donor``; a ``video``, where
    the input names it, is ``video/method/severity``. Donors come from a pairing of groups within dataset and split:
    free choice would tie all faces into one group that cannot be split.
    """
    _check_config(config)
    faces, base = _real_faces(config)
    jobs = plan(faces, config.methods, config.severities, config.seed)
    table = _table(faces, jobs, config)
    if "split" in table.columns:
        check_splits(table)
    with atomic(config.out) as folder:
        for job, name in zip(_progress(jobs), table["path"], strict=True):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_write(faces, job, base, config))
        table.to_csv(folder / "faces.csv", index=False)
        write_json(folder / "forgeries.json", to_dict(config))
    return Path(config.out) / "faces.csv"


def plan(faces: pd.DataFrame, methods: Sequence[str], severities: Sequence[float], seed: int) -> list[Job]:
    """Per face its original (severity 0), then every method at every severity above 0; ``path`` must be relative."""
    donors = _donors(faces, seed) if any(METHODS[method].needs_donor for method in methods) else {}
    jobs = []
    for row in range(len(faces)):
        jobs.append(Job(row, PRISTINE, 0.0, None))
        for method in dict.fromkeys(methods):
            donor = donors[row] if METHODS[method].needs_donor else None
            jobs += [Job(row, method, float(severity), donor) for severity in dict.fromkeys(severities) if severity > 0]
    return jobs


def encode(image: np.ndarray, file_format: str, quality: int) -> bytes:
    """uint8 RGB (height, width, 3) as JPEG (4:2:0), WEBP or (without loss) PNG."""
    from PIL import Image

    options = {"JPEG": {"quality": quality, "subsampling": "4:2:0"}, "WEBP": {"quality": quality}, "PNG": {}}[
        file_format
    ]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def pair(names: Sequence[str], seed: int) -> dict[str, str]:
    """A partner for each name: random disjoint pairs (a cycle of three where the number is odd). Needs two names."""
    order = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest())
    if len(order) < 2:
        raise ValueError("a pair needs two names")
    rings = [order[start : start + 2] for start in range(0, len(order), 2)]
    if len(rings[-1]) == 1:
        last = rings.pop()
        rings[-1] = rings[-1] + last
    return {name: ring[(i + 1) % len(ring)] for ring in rings for i, name in enumerate(ring)}


def _check_config(config: ForgeConfig) -> None:
    for method in config.methods:
        if method not in METHODS:
            raise InputError(f"there is no forgery method {method!r}{nearest(method, list(METHODS))}")
    for severity in config.severities:
        if not (math.isfinite(severity) and 0 <= severity <= 1):
            raise InputError(f"severity {severity} is not in [0, 1]; 0 is the original, 1 the strongest forgery")
    if not config.methods or not config.severities:
        raise InputError("give at least one method and one severity")
    if not 1 <= config.quality <= 100:
        raise InputError(f"quality={config.quality} is not in 1 to 100")
    out = Path(config.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already; give another out or remove it")


def _real_faces(config: ForgeConfig) -> tuple[pd.DataFrame, str]:
    """Real rows in the order of their paths, paths relative to the returned folder: names that other machines share."""
    faces = read_faces(config.faces, root=config.root)
    source = Path(config.faces)
    base = os.path.abspath(config.root or (source if source.is_dir() else source.parent))
    check_faces(faces.drop(columns="split", errors="ignore"))  # splits are checked once the forgeries are there
    real = faces[faces["label"] == "real"]
    if not len(real):
        raise InputError(f"{config.faces} has no real face to forge")
    if len(real) < len(faces):
        print(f"{len(faces) - len(real)} fake rows of {config.faces} are left out: real faces are forged")
    real = real.assign(path=[Path(os.path.relpath(path, base)).as_posix() for path in real["path"]])
    return real.sort_values("path", ignore_index=True), base


def _donors(faces: pd.DataFrame, seed: int) -> dict[int, int]:
    """Row of the donor of each row: a face of the partner group within the same dataset and split."""
    keys = ["dataset", "split"] if "split" in faces.columns else ["dataset"]
    tied = faces.assign(component=components(faces["group"]))
    donors = {}
    for values, rows in tied.groupby(keys, sort=True):
        named = rows["group"].groupby(rows["component"]).min()  # a component's number depends on the order of rows
        if len(named) < 2:
            raise InputError(f"swap needs two groups in {' '.join(values)}, there is one; leave out swap or add faces")
        members = {named[component]: part.index.to_numpy() for component, part in rows.groupby("component")}
        partner = pair(list(members), seed)
        for row, component in rows["component"].items():
            choice = members[partner[named[component]]]
            donors[row] = int(rng_for(seed, faces["path"][row], "donor", 0).choice(choice))
    return donors


def _table(faces: pd.DataFrame, jobs: Sequence[Job], config: ForgeConfig) -> pd.DataFrame:
    table = faces.iloc[[job.row for job in jobs]].reset_index(drop=True)
    paths, groups = faces["path"], faces["group"]
    table["source"] = table["path"]
    table["donor"] = ["" if job.donor is None else paths[job.donor] for job in jobs]
    table["path"] = [_target(source, job, config) for source, job in zip(table["source"], jobs, strict=True)]
    table["method"] = [job.method for job in jobs]
    table["label"] = ["fake" if job.severity else "real" for job in jobs]
    table["group"] = [
        groups[job.row] if job.donor is None else f"{groups[job.row]}|{groups[job.donor]}" for job in jobs
    ]
    if "video" in table.columns:  # a forged version is another video
        table["video"] = [
            f"{video}/{job.method}/{job.severity}" if job.severity else video
            for video, job in zip(table["video"], jobs, strict=True)
        ]
    table["severity"] = [job.severity for job in jobs]
    return table


def _target(source: str, job: Job, config: ForgeConfig) -> str:
    name = f"{hashlib.sha256(source.encode()).hexdigest()[:12]}-{Path(source).name}"
    if job.severity:
        return f"{job.method}/{job.severity}/{name}"
    return f"{'reencoded' if config.reencode_originals else 'original'}/{name}"


def _write(faces: pd.DataFrame, job: Job, base: str, config: ForgeConfig) -> bytes:
    """The bytes of one image of the plan."""
    path = faces["path"][job.row]
    if not job.severity and not config.reencode_originals:
        return Path(base, path).read_bytes()
    image = _read(base, path)
    if job.severity:
        donor = None if job.donor is None else _read(base, faces["path"][job.donor])
        image = forge(job.method, image, job.severity, rng_for(config.seed, path, job.method, job.severity), donor)
    return encode(image, FORMATS[Path(path).suffix.lower()], config.quality)


def _read(base: str, path: str) -> np.ndarray:
    from PIL import Image

    data = Path(base, path).read_bytes()
    try:
        check_image(data, Path(path).suffix.lower())
    except ValueError as error:
        raise InputError(f"{path}: {error}; remove the row or restore the file") from None
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _progress(jobs: Sequence[Job]) -> Iterator[Job]:
    from tqdm import tqdm

    return iter(tqdm(jobs, desc="forging", unit="image", disable=None))


def forge_command(config: ForgeConfig) -> None:
    table = forge_faces(config)
    print(f"wrote {table}")
    if not config.reencode_originals:
        print("originals are byte for byte; forgeries of JPEG and WebP are encoded once more (see reencode_originals)")


if __name__ == "__main__":
    run(ForgeConfig, forge_command)
