"""Verification finds every kind of damage and names shard and key; inspection counts and draws."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_shards.command import InputError
from data_shards.files import sha256_file, write_json
from data_shards.inspect import InspectConfig, contact_sheet, count, inspect_command, open_sets
from data_shards.manifest import INDEX, MANIFEST, ShardSet, content_digest
from data_shards.verify import VerifyConfig, verify, verify_command


@pytest.fixture
def train(shard_sets):
    """Shards of 5, 5, 5 and 3 samples."""
    return shard_sets["train"]


def members(shard):
    with tarfile.open(shard) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def rewrite(shard, new_members):
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in new_members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def bless(path):
    """Make the manifest agree with the shards as they are: what a careless tool would do after editing them."""
    manifest = json.loads((path / MANIFEST).read_text())
    for shard in manifest["shards"]:
        shard["sha256"], shard["bytes"] = sha256_file(path / shard["file"]), (path / shard["file"]).stat().st_size
    manifest["bytes"] = sum(shard["bytes"] for shard in manifest["shards"])
    manifest["index"]["sha256"] = sha256_file(path / INDEX)
    manifest["digest"] = content_digest(manifest["split"], [shard["sha256"] for shard in manifest["shards"]])
    write_json(path / MANIFEST, manifest)


def test_intact(shard_sets, capsys):
    for path in shard_sets.values():
        assert verify(path, workers=1) == []
    assert verify(shard_sets["train"], workers=2) == []
    verify_command(VerifyConfig(str(shard_sets["test"]), workers=1))
    assert capsys.readouterr().out == f"{shard_sets['test']}: as packed\n"


def test_rebuilding_by_tarfile_gives_our_tars(train):
    """So ``rewrite`` below changes only what a test changes, and our tars are what Python's own writer makes."""
    shard = train / "shard-000000.tar"
    before = shard.read_bytes()
    rewrite(shard, members(shard))
    assert shard.read_bytes() == before


def test_flipped_bit_in_an_image(train, capsys):
    found = ShardSet.open(train)
    row = 7  # of shard 1
    place = int(found.column("offset")[row] + found.column("length")[row] // 2)
    with open(train / "shard-000001.tar", "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))
    expected = [
        "shard-000001.tar is not the one that the manifest names (sha256 differs)",
        "shard-000001.tar 000000007: the image is not the packed one (sha256 differs)",
    ]
    assert verify(train, workers=1) == expected
    with pytest.raises(SystemExit) as stop:
        verify_command(VerifyConfig(str(train), workers=2))
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m[:2] + m[3:], r"000000006: 000000006\.jpg is missing in the tar$"),
        (lambda m: m[:-2], r"000000009: 000000009\.jpg is missing in the tar \(and 1 more\)$"),
        (lambda m: [*m, ("000000042.jpg", b"x")], r"000000042: 000000042\.jpg does not belong in the tar$"),
        (lambda m: [*m, m[0]], r"000000005: 000000005\.jpg does not belong in the tar$"),
        (lambda m: [m[2], m[3], m[0], m[1], *m[4:]], r"000000006: 000000006\.jpg is out of order$"),
        (lambda m: [(m[0][0], m[2][1]), m[1], (m[2][0], m[0][1]), *m[3:]], r"000000005: the image is not the packed"),
        (
            lambda m: [m[0], (m[1][0], m[1][1].replace(b'"fake"', b'"real"').replace(b'"real"', b'"fake"')), *m[2:]],
            None,
        ),
        (lambda m: [(m[0][0], m[0][1][:100]), *m[1:]], r"000000005: the image lies elsewhere"),
    ],
    ids=["missing", "cut", "extra", "twice", "swapped members", "swapped bytes", "wrong label", "truncated image"],
)
def test_edited_tar_is_found_even_with_a_new_manifest(train, change, problem):
    shard = train / "shard-000001.tar"
    old = members(shard)
    new = change(old)
    if problem is None:  # the label of the JSON alone
        flipped = json.loads(old[1][1])
        flipped["label"] = {"real": "fake", "fake": "real"}[flipped["label"]]
        new = [old[0], (old[1][0], json.dumps(flipped).encode()), *old[2:]]
        problem = r"000000005: the JSON is not what the index says"
    rewrite(shard, new)
    bless(train)
    problems = verify(train, workers=1)
    assert any(re.match(r"shard-000001\.tar " + problem, line) for line in problems), problems
    assert all(line.startswith("shard-000001.tar ") for line in problems)


def test_missing_cut_and_foreign_shards(train):
    (train / "shard-000000.tar").unlink()
    with open(train / "shard-000002.tar", "r+b") as file:
        file.truncate(700)
    shutil.copy(train / "shard-000001.tar", train / "shard-000009.tar")
    problems = verify(train, workers=1)
    assert problems[:2] == ["shard-000009.tar is not in the manifest", "shard-000000.tar is missing"]
    assert problems[2].startswith("shard-000002.tar has 700 bytes, the manifest says ")
    # 700 bytes hold one header and 188 bytes of the first image: all 5 images and 5 JSONs are lost but that header
    assert sum(": the image is not the packed one" in line for line in problems) == 5


def test_index_of_another_set(train, shard_sets):
    shutil.copy(shard_sets["test"] / INDEX, train / INDEX)
    assert verify(train, workers=1) == [f"{INDEX} is not the one that the manifest names (sha256 differs)"]
    bless(train)
    assert f"{INDEX} has other samples per shard than the manifest" in verify(train, workers=1)


def test_no_flipped_byte_goes_unseen(shard_sets, tmp_path):
    """400 random bytes of all files of a set, headers, padding, index and manifest included."""
    path = shard_sets["validation"]
    files = sorted(path.iterdir())
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(0)
    for _ in range(400):
        file = files[rng.choice(len(files), p=sizes / sizes.sum() if rng.random() < 0.5 else None)]
        good = file.read_bytes()
        place = int(rng.integers(len(good)))
        file.write_bytes(good[:place] + bytes([good[place] ^ int(rng.integers(1, 256))]) + good[place + 1 :])
        try:
            found = bool(verify(path, workers=1))
        except InputError:
            found = True
        # Seed and plan of the manifest are notes that nothing else on disk can confirm; white space says nothing.
        assert found or (file.name == MANIFEST and _same_but_notes(good, file.read_bytes())), (file.name, place)
        file.write_bytes(good)
    assert verify(path, workers=1) == []


def _same_but_notes(good, bad):
    notes = ("seed", "plan")
    one, two = ({k: v for k, v in json.loads(text).items() if k not in notes} for text in (good, bad))
    return one == two


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: shutil.rmtree(p), "there is no shard set"),
        (lambda p: (p / MANIFEST).unlink(), "has no manifest.json"),
        (lambda p: (p / MANIFEST).write_text("{"), "is not JSON"),
        (lambda p: (p / MANIFEST).write_text("[]"), "not the manifest of a shard set"),
        (lambda p: edit(p, schema=2), "has schema 2; this version reads 1"),
        (lambda p: edit(p, samples=7), "samples is not the sum"),
        (lambda p: edit(p, digest="0" * 64), "the digest does not name"),
        (lambda p: edit(p, split="dev"), "unknown split 'dev'"),
        (lambda p: edit(p, extra=1), "its keys differ in extra"),
        (lambda p: edit(p, shards=[{"file": "../../etc/passwd"}]), "shard 0 is not described"),
        (lambda p: edit(p, shards=3), "malformed"),
        (lambda p: (p / INDEX).unlink(), "index.parquet is missing"),
        (lambda p: (p / INDEX).write_bytes(b"x"), "index.parquet is not the one"),
        (lambda p: (p / "shard-000001.tar").unlink(), "shard-000001.tar is missing"),
        (lambda p: (p / "shard-000001.tar").write_bytes(b"x"), "shard-000001.tar has 1 bytes"),
    ],
)
def test_open_refuses_what_is_no_whole_set(train, damage, message):
    damage(train)
    with pytest.raises(InputError, match=message):
        ShardSet.open(train)


def edit(path, **values):
    write_json(path / MANIFEST, {**json.loads((path / MANIFEST).read_text()), **values})


def test_unknown_column_is_named(train):
    with pytest.raises(KeyError, match="no column 'colour'"):
        ShardSet.open(train).column("colour")


def test_counts(shard_sets, tmp_path):
    table = count(open_sets(tmp_path / "shards"))
    # 10 groups split 6:2:2, each one real, one blend and one warp
    rows = [tuple(row) for row in table[["split", "label", "method", "images", "groups"]].itertuples(index=False)]
    assert rows == [
        (split, label, method, n, n)
        for split, n in (("train", 6), ("validation", 2), ("test", 2))
        for label, method in (("fake", "blend"), ("fake", "warp"), ("real", "pristine"))
    ]


def test_contact_sheet_shows_the_faces(shard_sets, tmp_path, capsys):
    inspect_command(InspectConfig(str(shard_sets["train"]), sheet=str(tmp_path / "sheet.png"), columns=4))
    assert "18 images, 6 groups, 4 shards" in capsys.readouterr().out
    found = ShardSet.open(shard_sets["train"])
    sheet = Image.open(tmp_path / "sheet.png")
    # 3 lines (fake blend, fake warp, real) of 4 faces: 4 + 4 * (112 + 4) by 4 + 3 * (112 + 16 + 4)
    assert sheet.size == (468, 400)
    row = int(np.flatnonzero(found.column("method") == "blend")[0])
    offset, length = found.column("offset")[row], found.column("length")[row]
    with open(found.shard_path(found.column("shard")[row]), "rb") as file:
        file.seek(offset)
        face = Image.open(io.BytesIO(file.read(length))).resize((112, 112), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(sheet)[20:132, 4:116], np.asarray(face))


def test_contact_sheet_refuses_damaged_faces(train):
    with open(train / "shard-000000.tar", "r+b") as file:
        file.seek(600)
        file.write(bytes(200))
    with pytest.raises(InputError, match=r"shard-000000.tar 000000000: the image is not the packed one"):
        contact_sheet(open_sets(train))
    with pytest.raises(InputError, match="there is no shard set at"):
        open_sets(train / "nowhere")
