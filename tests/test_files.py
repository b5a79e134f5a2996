"""Files are whole or absent; digests name content."""

import hashlib
import os

import pytest

from data_shards.files import atomic, digest, sha256_file, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic(tmp_path / "set") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_does_not_replace_a_filled_one(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "kept").touch()
    with pytest.raises(OSError, match="not empty"), atomic(tmp_path / "set") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "kept"]


def test_a_file_is_readable_by_whom_the_umask_says(tmp_path):
    """safetensors, for one, writes files for their owner alone."""
    before = os.umask(0o027)
    try:
        with atomic(tmp_path / "weights") as temporary:
            temporary.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


def test_digest_does_not_depend_on_key_order():
    assert digest({"a": 1, "b": [1, "ü"]}) == digest({"b": [1, "ü"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest("x") == hashlib.sha256(b'"x"').hexdigest()


def test_sha256_of_a_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    assert (tmp_path / "a.json").read_bytes() == b"[\n 1\n]\n"
    assert sha256_file(tmp_path / "a.json") == hashlib.sha256(b"[\n 1\n]\n").hexdigest()
