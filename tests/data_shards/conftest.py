"""Small face tables of real JPEG files, and shard sets packed from them."""

from __future__ import annotations

import functools
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_shards import remote
from data_shards.manifest import ShardSet
from data_shards.pack import pack
from data_shards.remote import ShardCache
from tests.data_shards.by_hand import SHARDS, encoded, picture, write_set
from tests.data_shards.serving import Handler

METHODS = ("blend", "warp")


def jpeg(seed: int, size: int = 32) -> bytes:
    """A small JPEG whose pixels, and so whose length, differ with the seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    noisy = np.asarray(image, dtype=np.int16) + rng.integers(-12, 13, (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_faces(folder: Path, groups: int, *, size: int = 32, dataset: str = "tiny") -> Path:
    """``folder/faces.csv``: per group one real face and one fake of each method (blend, warp), as files beside it."""
    rows = []
    for group in range(groups):
        for number, (label, method) in enumerate([("real", "pristine"), *(("fake", method) for method in METHODS)]):
            path = folder / method / f"g{group:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(10 * group + number, size))
            rows.append((f"{method}/{path.name}", label, method, f"g{group:04d}", dataset))
    table = folder / "faces.csv"
    pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset"]).to_csv(table, index=False)
    return table


@pytest.fixture
def make_faces(tmp_path):
    """Function (groups, *, size=32, dataset="tiny", name="faces") → path of a face table; 3 images per group."""

    def make(groups: int, *, size: int = 32, dataset: str = "tiny", name: str = "faces") -> Path:
        return write_faces(tmp_path / name, groups, size=size, dataset=dataset)

    return make


@pytest.fixture
def faces_csv(make_faces) -> Path:
    """Face table of 10 groups: 10 real, 10 blend, 10 warp faces of 32x32 pixels."""
    return make_faces(10)


@pytest.fixture
def shard_sets(faces_csv, tmp_path) -> dict[str, Path]:
    """``faces_csv`` packed into train (18 samples), validation (6) and test (6), shards of 5; safe to damage."""
    faces = pd.read_csv(faces_csv, dtype=str)
    return pack(faces, faces_csv.parent, tmp_path / "shards", shard_size=5, workers=1)


@pytest.fixture(scope="session")
def shared_sets(tmp_path_factory) -> dict[str, Path]:
    """As ``shard_sets`` but of 40 groups (train 72 samples, shards of 7), made once: read only."""
    folder = tmp_path_factory.mktemp("shared")
    table = write_faces(folder / "faces", 40)
    return pack(pd.read_csv(table, dtype=str), table.parent, folder / "shards", shard_size=7, workers=1)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.03))


@pytest.fixture
def server(shared_sets):
    handler = functools.partial(Handler, directory=shared_sets["train"].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        served.asked, served.flips, served.cuts, served.stalls, served.fails = [], None, None, None, 0
        served.ended = threading.Event()
        served.daemon_threads = True
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        served.url = f"http://127.0.0.1:{served.server_address[1]}/train"
        yield served
        served.ended.set()
        served.shutdown()
        thread.join()


@pytest.fixture
def local(shared_sets) -> ShardSet:
    return ShardSet.open(shared_sets["train"])  # 72 samples in 11 shards


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, ShardSet]:
    folder = tmp_path_factory.mktemp("sets")
    made = {}
    for name, sizes in SHARDS.items():
        first = np.cumsum([0, *sizes])
        images = [[encoded(picture(first[s] + i)) for i in range(n)] for s, n in enumerate(sizes)]
        made[name] = write_set(folder / name, images)
    return made


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """What Pillow decodes for sample i of any of the sets, (n, 8, 8, 3)."""
    most = max(sum(sizes) for sizes in SHARDS.values())
    return np.stack([np.asarray(Image.open(io.BytesIO(encoded(picture(i))))) for i in range(most)])
