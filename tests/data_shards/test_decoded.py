"""Pictures laid out as one array: the pixels that decoding gives, made once, and none of what is damaged."""

import numpy as np
import pytest

from data_shards import decoded
from data_shards.loader import TrainingLoader, evaluation_batches
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample, SampleReader
from tests.data_shards.by_hand import encoded, picture, write_set

IMAGES = [
    encoded(picture(0)),
    encoded(picture(1, (8, 8)), "PNG"),
    encoded(picture(2, (21, 13)), quality=40),
    encoded(picture(3).convert("L")),
]


@pytest.fixture
def shards(tmp_path) -> ShardSet:
    """150 samples, more than two blocks, in shards of 70 and 80; those of another size are resized."""
    images = [IMAGES[number % 4] for number in range(150)]
    return write_set(tmp_path / "set", [images[:70], images[70:]])


def laid_out(shards: ShardSet, folder, size: int = 8) -> list[int]:
    told = []
    decoded.lay_out(shards, size, folder, threads=2, progress=told.append)
    return told


def with_pictures(shards: ShardSet, folder, size: int = 8) -> ShardSet:
    found = decoded.find(shards, size, folder)
    assert found is not None
    return ShardSet(shards.path, shards.manifest, decoded=found)


@pytest.mark.parametrize("size", [8, 5])
def test_every_way_to_read_gives_the_pixels_of_decoding_and_reads_no_shard(shards, tmp_path, size, monkeypatch):
    assert sum(laid_out(shards, tmp_path / "pictures", size)) == len(shards)
    options = {"batch_size": 20, "image_size": size, "threads": 2}
    with TrainingLoader(shards, seed=3, **options) as loader:
        training = [next(loader) for _ in range(10)]
    evaluation = list(evaluation_batches(shards, **options))
    shared = with_pictures(shards, tmp_path / "pictures", size)
    assert not shared.decoded.pixels.flags.writeable  # mapped, for all processes
    monkeypatch.setattr(ShardSet, "open_shard", lambda *_: pytest.fail("a shard was opened"))
    with TrainingLoader(shared, seed=3, **options) as loader:
        again = [next(loader) for _ in range(10)]
    for first, second in zip([*training, *evaluation], [*again, *evaluation_batches(shared, **options)], strict=True):
        assert all(a.equal(b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def test_a_part_of_a_set_has_rows_of_its_own(shards, tmp_path):
    laid_out(shards, tmp_path / "pictures")
    found = decoded.find(shards, 8, tmp_path / "pictures")
    rows = np.array([149, 2, 70])
    part = ShardSet(shards.path, shards.manifest, decoded=found._replace(rows=rows))
    one, whole = np.empty((8, 8, 3), np.uint8), np.empty((8, 8, 3), np.uint8)
    for place, row in enumerate(rows):
        SampleReader(part, image_size=8).decode_into(place, one)
        SampleReader(shards, image_size=8).decode_into(row, whole)
        np.testing.assert_array_equal(one, whole)


def test_pictures_of_another_size_are_refused(shards, tmp_path):
    laid_out(shards, tmp_path)
    with pytest.raises(ValueError, match="decoded for another size"):
        SampleReader(with_pictures(shards, tmp_path), image_size=5)


def test_what_is_damaged_is_not_laid_out(shards, tmp_path):
    file = shards.shard_path(1)
    data = bytearray(file.read_bytes())
    data[int(shards.column("offset")[100]) + 30] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptSample, match="'k100'"):
        laid_out(shards, tmp_path / "pictures")
    assert list((tmp_path / "pictures").iterdir()) == []


def test_an_array_that_is_not_what_was_written_is_not_used(shards, tmp_path):
    folder = tmp_path / "pictures"
    assert not decoded.is_whole(shards, 8, folder)
    laid_out(shards, folder)
    assert decoded.is_whole(shards, 8, folder)
    file = decoded.array_file(shards, 8, folder)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not decoded.is_whole(shards, 8, folder)
    file.write_bytes(whole[:-1])
    assert decoded.find(shards, 8, folder) is None
    file.write_bytes(whole)
    facts = file.with_suffix(".json")
    facts.write_text(facts.read_text().replace('"pillow": "', '"pillow": "0.'))  # another decoder may give other pixels
    assert decoded.find(shards, 8, folder) is None
    file.unlink()
    assert not decoded.is_whole(shards, 8, folder)
