"""Reader and loader on shard sets written here by hand after docs/DESIGN.md, so that shards have any size."""

import gc
import io
import itertools
import json
import os
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.command import InputError
from data_shards.files import sha256_file, write_json
from data_shards.loader import TrainingLoader, _Decoder, evaluation_batches
from data_shards.manifest import ShardSet, content_digest
from data_shards.order import SampleOrder
from data_shards.reader import CorruptSample, SampleReader

SIZE = 8
SHARDS = {
    "uneven": [5, 1, 9, 3, 14, 1],
    "one-sample shards": [1] * 7,
    "one sample": [1],
    "one shard": [23],
    "more than a window": [3] * 20,
}


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A smooth random picture (noise would make chroma subsampling invisible in its own artefacts)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_set(folder, shards: list[list[bytes]], extension: str = "jpg") -> ShardSet:
    folder.mkdir(parents=True)
    rows, described, number = [], [], 0
    for shard, images in enumerate(shards):
        name = f"shard-{shard:06d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for data in images:
                label = ("real", "fake")[number % 2]
                meta = {"label": label, "method": "m", "group": f"g{number}", "dataset": "d", "path": f"{number}.jpg"}
                for suffix, content in ((extension, data), ("json", json.dumps(meta).encode())):
                    info = tarfile.TarInfo(f"k{number}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                hashes = {"sha256": "", "xxh3": np.uint64(xxhash.xxh3_64_intdigest(data))}
                rows.append({"key": f"k{number}", "shard": shard, "length": len(data), **hashes, **meta})
                number += 1
        with tarfile.open(folder / name) as tar:
            offsets = [member.offset_data for member in tar if not member.name.endswith(".json")]
        for row, offset in zip(rows[-len(images) :], offsets, strict=True):
            row.update(offset=offset, extension=extension)
        sizes = {"samples": len(images), "bytes": (folder / name).stat().st_size}
        described.append({"file": name, "sha256": sha256_file(folder / name), "labels": {}, "methods": {}, **sizes})
    table = pa.Table.from_pandas(pd.DataFrame(rows).astype({"shard": "int32"}), preserve_index=False)
    with pq.ParquetWriter(folder / "index.parquet", table.schema) as writer:
        for shard in range(len(shards)):
            writer.write_table(table.filter(pa.compute.equal(table["shard"], shard)))
    totals = {key: sum(shard[key] for shard in described) for key in ("samples", "bytes")}
    manifest = {"schema": 1, "split": "train", "labels": {}, "methods": {}, "datasets": {}, "groups": 0, "seed": 0}
    manifest |= {"plan": "", "shards": described, **totals}
    manifest["index"] = {"file": "index.parquet", "sha256": sha256_file(folder / "index.parquet")}
    manifest["digest"] = content_digest("train", [shard["sha256"] for shard in described])
    write_json(folder / "manifest.json", manifest)
    return ShardSet.open(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, ShardSet]:
    folder = tmp_path_factory.mktemp("sets")
    made = {}
    for name, sizes in SHARDS.items():
        first = np.cumsum([0, *sizes])
        images = [[encoded(picture(first[s] + i)) for i in range(n)] for s, n in enumerate(sizes)]
        made[name] = write_set(folder / name, images)
    return made


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """What Pillow decodes for sample i of any of the sets, (n, 8, 8, 3)."""
    most = max(sum(sizes) for sizes in SHARDS.values())
    return np.stack([np.asarray(Image.open(io.BytesIO(encoded(picture(i))))) for i in range(most)])


def check(batch, pixels, shards) -> None:
    """The batch's images and labels are those of its indices."""
    np.testing.assert_array_equal(batch.images.numpy(), pixels[batch.index.numpy()])
    np.testing.assert_array_equal(batch.labels.numpy(), batch.index.numpy() % 2)
    # write_set gives sample i the group g<i>, and the only method m; names are sorted as text
    names = sorted(f"g{i}" for i in range(len(shards)))
    assert [names[code] for code in batch.group.tolist()] == [f"g{i}" for i in batch.index.tolist()]
    assert shards.groups.names.tolist() == names
    assert (batch.method == 0).all()
    assert (batch.method.dtype, batch.group.dtype) == (torch.int64, torch.int64)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.float32)
    assert (batch.index.dtype, batch.epoch.dtype) == (torch.int64, torch.int64)


# --- reading and decoding


def jpegs() -> dict[str, bytes]:
    kinds = {}
    for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
        for progressive in (False, True):
            options = {"subsampling": subsampling, "progressive": progressive, "quality": 87}
            kinds[f"{subsampling} progressive={progressive}"] = encoded(picture(1, (61, 61)), **options)
    kinds["grayscale"] = encoded(picture(2, (61, 61)).convert("L"))
    kinds["CMYK"] = encoded(picture(3, (61, 61)).convert("CMYK"))
    kinds["RGB, no YCbCr"] = encoded(picture(4, (61, 61)), keep_rgb=True)
    kinds["low quality"] = encoded(picture(5, (61, 61)), quality=5)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees": ignored, as by Image.open
    kinds["EXIF orientation"] = encoded(picture(6, (61, 61)), exif=exif)
    kinds["bytes after the end"] = encoded(picture(7, (61, 61))) + b"appended"
    return kinds


@pytest.mark.parametrize("kind", jpegs())
@pytest.mark.parametrize("size", [61, 32])
def test_jpeg_pixels_are_pillows(kind, size, tmp_path):
    data = jpegs()[kind]
    reader = SampleReader(write_set(tmp_path / "set", [[data]]), image_size=size)
    out = np.zeros((size, size, 3), np.uint8)
    reader.decode_into(0, out)
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(out, np.asarray(expected))
    assert reader.read(0) == data
    reader.close()


@pytest.mark.assets
@pytest.mark.parametrize("dataset", ["dfdc", "stylegan"])
def test_real_faces_are_decoded_as_by_pillow(dataset, tmp_path):
    faces = Path(__file__).resolve().parents[3] / "shared" / "assets" / "faces"
    if not (faces / "faces.csv").exists():
        pytest.skip("there are no real faces beside the checkout")
    table = pd.read_csv(faces / "faces.csv")
    paths = table[table["dataset"] == dataset]["path"].sample(150, random_state=0)
    images = [(faces / path).read_bytes() for path in paths]
    shards = write_set(tmp_path / "set", [images[:70], images[70:]])
    for batch in evaluation_batches(shards, batch_size=50, image_size=224):
        for index, pixels in zip(batch.index.tolist(), batch.images.numpy(), strict=True):
            image = Image.open(io.BytesIO(images[index])).convert("RGB")
            np.testing.assert_array_equal(pixels, np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_png_and_webp_by_pillow(format, mode, tmp_path):
    data = encoded(picture(1, (20, 20)).convert(mode), format)
    reader = SampleReader(write_set(tmp_path / "set", [[data]], format.lower()), image_size=20)
    out = np.zeros((20, 20, 3), np.uint8)
    reader.decode_into(0, out)
    np.testing.assert_array_equal(out, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("stored", [(40, 40), (20, 20), (45, 30)])
def test_resizing_is_timms_evaluation_transform(stored, tmp_path):
    from timm.data import create_transform

    data = encoded(picture(1, stored))
    reader = SampleReader(write_set(tmp_path / "set", [[data]]), image_size=32)
    out = np.zeros((32, 32, 3), np.uint8)
    reader.decode_into(0, out)
    transform = create_transform(
        (3, 32, 32), interpolation="bicubic", crop_pct=1.0, crop_mode="squash", normalize=False
    )
    expected = torch.as_tensor(transform(Image.open(io.BytesIO(data)))).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(out, expected)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_are_refused_from_the_header(tmp_path, monkeypatch):
    flat = Image.new("RGB", (12_000, 12_000))  # 144 Mpixel in half a megabyte
    shards = write_set(tmp_path / "png", [[encoded(flat.convert("1"), "PNG")], [encoded(flat.convert("L"))]], "png")
    reader = SampleReader(shards, image_size=SIZE)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.Image.Image.convert", lambda *_: pytest.fail("decoded"))
    for index in (0, 1):
        with pytest.raises(CorruptSample, match="12000 x 12000 pixels are more than max_pixels"):
            reader.decode_into(index, np.zeros((SIZE, SIZE, 3), np.uint8))


def test_deep_images_are_refused_rather_than_clipped(tmp_path):
    deep = encoded(Image.fromarray(np.full((SIZE, SIZE), 40_000, np.uint16)), "PNG")
    reader = SampleReader(write_set(tmp_path / "set", [[deep]], "png"), image_size=SIZE)
    with pytest.raises(CorruptSample, match="more than 8 bits"):
        reader.decode_into(0, np.zeros((SIZE, SIZE, 3), np.uint8))


def test_more_shards_than_open_files(sets, monkeypatch):
    monkeypatch.setattr("data_shards.reader.OPEN_FILES", 2)
    shards = sets["more than a window"]
    reader = SampleReader(shards, image_size=SIZE)
    for index in np.random.default_rng(0).permutation(shards.samples):
        reader.decode_into(int(index), np.zeros((SIZE, SIZE, 3), np.uint8))
        assert len(reader._files) <= 2


# --- training


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(SHARDS)), seed=st.integers(0, 3), batch_size=st.sampled_from([8, 24]))
def test_the_order_survives_changes_of_ranks_and_threads(sets, pixels, data, name, seed, batch_size):
    """Stop anywhere, continue with other ranks and threads: batch for batch the undisturbed, shuffled sequence."""
    shards = sets[name]
    position, batches = 0, 0
    state = None
    for _ in range(data.draw(st.integers(1, 4), label="runs")):
        world = data.draw(st.sampled_from([w for w in (1, 2, 3, 4, 8) if batch_size % w == 0]), label="ranks")
        threads = data.draw(st.integers(1, 3), label="threads")
        loaders = [
            TrainingLoader(
                shards, batch_size=batch_size, image_size=SIZE, seed=seed, rank=r, world_size=world, threads=threads
            )
            for r in range(world)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
        for _ in range(data.draw(st.integers(0, 4), label="batches")):
            parts = [next(loader) for loader in loaders]
            expected, epoch = SampleOrder(SHARDS[name], seed, shards.digest).take(position, position + batch_size)
            np.testing.assert_array_equal(torch.cat([part.index for part in parts]), expected)
            np.testing.assert_array_equal(torch.cat([part.epoch for part in parts]), epoch)
            for part in parts:
                check(part, pixels, shards)
                assert len(part) == batch_size // world
            position, batches = position + batch_size, batches + 1
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        assert states[0]["position"] == position == loaders[0].position
        state = states[0]
        for loader in loaders:
            loader.close()


def test_load_state_dict_in_the_middle_forgets_what_was_prefetched(sets):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, prefetch=3) as loader:
        first = [next(loader).index.tolist() for _ in range(5)]
        loader.load_state_dict({**loader.state_dict(), "position": 4})
        assert [next(loader).index.tolist() for _ in range(4)] == first[1:]
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, position=8) as loader:
        assert next(loader).index.tolist() == first[2]


@pytest.mark.parametrize("change", ["seed", "data"])
def test_a_position_of_another_sequence_is_refused(sets, change):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0) as loader:
        state = loader.state_dict()
    name, seed = ("uneven", 1) if change == "seed" else ("one shard", 0)
    with (
        TrainingLoader(sets[name], batch_size=4, image_size=SIZE, seed=seed) as loader,
        pytest.raises(InputError, match="seed was 0 and is 1" if change == "seed" else "digest was"),
    ):
        loader.load_state_dict(state)


def test_a_batch_belongs_to_the_caller(sets, pixels):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, prefetch=4) as loader:
        held = [next(loader) for _ in range(20)]
    for batch in held:
        check(batch, pixels, sets["uneven"])


@pytest.mark.parametrize(
    "part",
    [lambda images: images[1:], lambda images: images.numpy()[1:], lambda images: images.flatten().detach()[192:]],
)
def test_memory_is_used_again_only_when_no_part_of_the_batch_is_left(sets, pixels, part):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, prefetch=1) as loader:
        held, addresses = [], set()
        for step in range(60):
            batch = next(loader)
            addresses.add(batch.images.data_ptr())
            if step % 20 == 0:
                held.append((batch.index[1:].numpy(), part(batch.images)))
        del batch
    # Those held; the caller's last one, the one being returned, two ahead; one that each thread has yet to let go of.
    # Twice as many, as a busy machine lets go late; without any reuse they were 60.
    assert len(addresses) <= 2 * (3 + 4 + 2)
    for index, kept in held:
        np.testing.assert_array_equal(np.asarray(kept).reshape(3, SIZE, SIZE, 3), pixels[index])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_pinned_batches(sets, pixels):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, pin_memory=True) as loader:
        batches = [next(loader) for _ in range(20)]
    for batch in batches:
        assert batch.images.is_pinned()
        check(batch, pixels, sets["uneven"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "batch_size=6 is not a multiple of the 4 ranks"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"position": -1}, "position=-1"),
        ({"threads": 0}, "threads=0"),
        ({"on_bad": "ignore"}, "on_bad='ignore'"),
        ({"max_bad_share": 2.0}, "max_bad_share=2.0"),
    ],
)
def test_wrong_options_name_the_remedy(sets, options, message):
    with pytest.raises(InputError, match=message):
        TrainingLoader(sets["uneven"], **{"batch_size": 4, "image_size": SIZE, "seed": 0, **options})


# --- threads


def decoding_threads() -> int:
    return sum(thread.name.startswith("data_shards") for thread in threading.enumerate())


@pytest.mark.timeout(30)
def test_threads_end(sets):
    gc.collect()  # of loaders that other tests dropped
    assert decoding_threads() == 0
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, threads=3) as loader:
        assert decoding_threads() == 0  # none before the first batch
        next(loader)
        assert 0 < decoding_threads() <= 3
    assert decoding_threads() == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)
    loader.close()  # again does nothing

    for batch in evaluation_batches(sets["uneven"], batch_size=4, image_size=SIZE):
        assert len(batch) == 4
        break
    gc.collect()  # an abandoned evaluation closes itself
    assert decoding_threads() == 0

    forgotten = TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0)
    next(forgotten)
    del forgotten
    until = time.monotonic() + 10
    while decoding_threads() and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert decoding_threads() == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [MemoryError("no memory"), KeyError("a bug")])
def test_any_error_of_a_thread_reaches_the_caller_and_can_be_retried(sets, monkeypatch, error):
    broken = threading.Event()
    broken.set()
    decode = SampleReader.decode_into

    def failing(self, index, out):
        if broken.is_set() and index == 5:
            raise error
        decode(self, index, out)

    monkeypatch.setattr(SampleReader, "decode_into", failing)
    with TrainingLoader(sets["one shard"], batch_size=23, image_size=SIZE, seed=0) as loader:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                next(loader)
            assert "sample 5" in caught.value.__notes__[0]
            assert loader.position == 0
        broken.clear()
        assert sorted(next(loader).index.tolist()) == list(range(23))
        assert loader.position == 23


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_batch_that_cannot_be_begun_is_not_lost(sets, monkeypatch, at):
    """No memory for one of the batches ahead: the one asked for comes with the next call, and the order stays."""
    begin, calls = _Decoder._begin, itertools.count()

    def failing(self, *positions):
        if next(calls) == at:
            raise MemoryError
        return begin(self, *positions)

    options = {"batch_size": 4, "image_size": SIZE, "seed": 0}
    with TrainingLoader(sets["uneven"], **options) as loader:
        expected = [next(loader).index.tolist() for _ in range(10)]
    monkeypatch.setattr(_Decoder, "_begin", failing)
    seen, failures = [], 0
    with TrainingLoader(sets["uneven"], **options) as loader:
        while len(seen) < 10:
            try:
                seen.append(next(loader).index.tolist())
            except MemoryError:
                failures += 1
            assert loader.position == 4 * len(seen)
    assert failures == 1
    assert seen == expected


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_the_system_is_told_what_is_read_next(sets, monkeypatch):
    """Of a folder: the shards of the next window in training, the next shard in evaluation."""
    told = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, *_: told.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    )
    shards = sets["more than a window"]  # 20 shards of 3: windows of 16 and 4
    order = SampleOrder(SHARDS["more than a window"], 0, shards.digest)
    expected = [shard["file"] for shard in (shards.shards[s] for s in order.next_window(0))]
    with TrainingLoader(shards, batch_size=4, image_size=SIZE, seed=0, prefetch=0) as loader:
        next(loader)
        while len(told) < 4:
            time.sleep(0.001)
    assert told == expected
    told.clear()
    batches = evaluation_batches(shards, batch_size=3, image_size=SIZE, prefetch=0)
    next(batches)
    while "shard-000002.tar" not in told:  # the batch that is begun is of shard 1
        time.sleep(0.001)
    batches.close()
    assert set(told) <= {"shard-000001.tar", "shard-000002.tar"}


# --- evaluation


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("world", range(1, 9))
def test_evaluation_sees_every_sample_once(sets, pixels, name, world):
    shards = sets[name]
    seen = []
    for rank in range(world):
        mine = list(evaluation_batches(shards, batch_size=4, image_size=SIZE, rank=rank, world_size=world))
        for batch in mine:
            check(batch, pixels, shards)
            assert (batch.epoch == 0).all()
            assert 1 <= len(batch) <= 4
        assert all(len(batch) == 4 for batch in mine[:-1])
        seen.append(np.concatenate([np.empty(0, int), *(batch.index for batch in mine)]))
    assert np.concatenate(seen).tolist() == list(range(shards.samples))  # contiguous ranges, in the order of the ranks
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@pytest.mark.parametrize("world", range(1, 9))
def test_what_evaluation_leaves_out_is_bounded_whatever_the_world(sets, monkeypatch, world):
    """A tenth of the samples is bad, evenly; 9 % are too many for one rank, and so for some of any number of them."""
    shards = sets["more than a window"]  # 60 samples
    decode = SampleReader.decode_into

    def failing(self, index, out):
        if index % 10 == 5:
            raise self.corrupt(index, "a test")
        decode(self, index, out)

    monkeypatch.setattr(SampleReader, "decode_into", failing)

    def left_out(share):
        """Samples that no rank gave, or None if one of them raised."""
        seen = []
        for rank in range(world):
            options = {"on_bad": "skip", "max_bad_share": share, "rank": rank, "world_size": world}
            seen += [i for b in evaluation_batches(shards, batch_size=4, image_size=SIZE, **options) for i in b.index]
        return 60 - len(seen)

    with pytest.raises(CorruptSample, match=r"samples are bad, above max_bad_share=0\.09"):
        left_out(0.09)
    assert left_out(0.2) == 6


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("name", SHARDS)
def test_one_epoch_of_training_sees_every_sample_once(sets, name, world):
    """Two epochs; a global batch is one sample per rank, so that epochs end anywhere in it."""
    samples, seen = sum(SHARDS[name]), []
    for rank in range(world):
        options = {"batch_size": world, "rank": rank, "world_size": world, "threads": 1}
        with TrainingLoader(sets[name], image_size=SIZE, seed=0, **options) as loader:
            batches = [next(loader) for _ in range(-(-2 * samples // world))]
        seen += [(int(batch.epoch), int(batch.index)) for batch in batches]
    assert sorted(pair for pair in seen if pair[0] < 2) == [(e, i) for e in (0, 1) for i in range(samples)]
