"""Forgeries: severity 0 changes nothing, the change grows with severity, stays under the mask and is reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards import forgeries
from data_shards.command import InputError, run
from data_shards.faces import check_faces, check_splits, read_faces
from data_shards.forge import METHODS, face_mask, forge, rng_for, transfer_colour
from data_shards.forgeries import ForgeConfig, forge_command, forge_faces
from data_shards.splits import components

SEVERITIES = (0.25, 0.5, 0.75, 1.0)


def portrait(seed: int, size: int = 128) -> np.ndarray:
    """A textured picture with a face-like oval, eyes and mouth: enough structure for every method to have an effect."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), rng.integers(60, 180, 3), np.uint8)
    middle = (size // 2, int(0.55 * size))
    cv2.ellipse(image, (middle, (0.5 * size, 0.75 * size), 0), rng.integers(120, 220, 3).tolist(), -1)
    for x in (0.4, 0.6):
        cv2.circle(image, (int(x * size), int(rng.uniform(0.43, 0.5) * size)), size // 20, (40, 30, 30), -1)
    cv2.ellipse(image, (int(0.5 * size), int(0.72 * size)), (size // 9, size // 30), 0, 0, 360, (150, 60, 70), -1)
    noise = cv2.GaussianBlur(rng.normal(0, 40, image.shape), (0, 0), 1.0)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_severity_zero_is_the_input(method: str) -> None:
    image = portrait(0)
    forged = forge(method, image, 0.0, np.random.default_rng(0), portrait(1))
    assert np.array_equal(forged, image)
    assert forged is not image


@pytest.mark.parametrize("method", METHODS)
def test_effect_rises_with_severity(method: str) -> None:
    effects = np.zeros(len(SEVERITIES))
    for seed in range(12):
        image, donor = portrait(seed), portrait(seed + 100)
        inside = face_mask(image.shape[:2], np.random.default_rng(seed)) > 0.5
        for i, severity in enumerate(SEVERITIES):
            forged = forge(method, image, severity, np.random.default_rng(seed), donor)
            effects[i] += np.abs(forged.astype(int) - image)[inside].mean() / 12
    assert effects[0] > 0.5  # grey levels: visible to a network already at the weakest step
    assert np.all(np.diff(effects) > 0)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(40, 150), st.integers(40, 150)),
    severity=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_any_size_keeps_shape_and_everything_outside_the_mask(
    method: str, size: tuple[int, int], severity: float, seed: int
) -> None:
    image = cv2.resize(portrait(3), size)
    forged = forge(method, image, severity, np.random.default_rng(seed), portrait(4))
    assert forged.shape == image.shape
    assert forged.dtype == np.uint8
    outside = face_mask(image.shape[:2], np.random.default_rng(seed)) == 0
    assert outside[:2].all()  # the mask never reaches the upper border: hair and background are the face's own
    assert np.array_equal(forged[outside], image[outside])


@pytest.mark.parametrize("method", METHODS)
def test_same_generator_same_forgery(method: str) -> None:
    image, donor = portrait(5), portrait(6)
    first, again = (forge(method, image, 0.8, rng_for(7, "a.png", method, 0.8), donor) for _ in range(2))
    other = forge(method, image, 0.8, rng_for(8, "a.png", method, 0.8), donor)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_generator_depends_on_every_part_of_the_name() -> None:
    names = [(0, "a", "swap", 0.5), (1, "a", "swap", 0.5), (0, "b", "swap", 0.5), (0, "a", "resample", 0.5)]
    names.append((0, "a", "swap", 0.25))
    assert len({rng_for(*name).integers(2**62) for name in names}) == len(names)
    assert rng_for(0, "a", "swap", 1).integers(2**62) == rng_for(0, "a", "swap", 1.0).integers(2**62)


def test_resample_averages_what_is_finer_than_its_pixels() -> None:
    # Diagonal stripes: one pixel of 210 in three, else 0. Severity 1 scales down by 3: each small pixel is the mean of
    # a 3x3 block, 3 * 210 / 9 = 70, and so is every pixel scaled up again. Where the mask is 1, stripes become 70.
    stripes = np.where(np.add.outer(np.arange(66), np.arange(66)) % 3, 0, 210).astype(np.uint8)
    image = np.repeat(stripes[..., None], 3, axis=2)
    forged = forge("resample", image, 1.0, np.random.default_rng(0))
    core = face_mask((66, 66), np.random.default_rng(0)) > 0.9999
    assert core.sum() > 50
    assert np.all(forged[core] == 70)


def test_swapping_a_face_with_itself_leaves_it_in_place() -> None:
    # The clone of a picture into itself is the picture. A placement off by one pixel would change this texture by
    # many grey levels; rounding in Lab and in the Poisson solver leaves about one.
    image = portrait(9)
    forged = forge("swap", image, 1.0, np.random.default_rng(1), image)
    inside = face_mask(image.shape[:2], np.random.default_rng(1)) > 0.5
    assert np.abs(forged.astype(int) - image)[inside].mean() < 1.5
    assert np.abs(np.roll(image, 1, axis=1).astype(int) - image)[inside].mean() > 5


def test_swap_takes_a_mirrored_donor_when_that_faces_the_same_way() -> None:
    image = portrait(10)
    image[:, :64] //= 2  # lit from one side
    forged = forge("swap", image, 1.0, np.random.default_rng(1), np.ascontiguousarray(image[:, ::-1]))
    inside = face_mask(image.shape[:2], np.random.default_rng(1)) > 0.5
    assert np.abs(forged.astype(int) - image)[inside].mean() < 1.5


def test_colour_transfer_gives_the_targets_moments() -> None:
    # Mid-range colours, so that nothing is clipped: mean and spread of L, a, b under the mask become the target's.
    rng = np.random.default_rng(0)
    source = np.clip(rng.normal((110, 130, 140), 12, (64, 64, 3)), 0, 255).astype(np.uint8)
    target = np.clip(rng.normal((150, 120, 110), 16, (64, 64, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 16:48] = 1
    moved = transfer_colour(source, target, mask)
    lab = [cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[16:48, 16:48] for x in (moved, target)]
    np.testing.assert_allclose(lab[0].mean((0, 1)), lab[1].mean((0, 1)), atol=0.3)
    np.testing.assert_allclose(lab[0].std((0, 1)), lab[1].std((0, 1)), rtol=0.03)


@pytest.mark.parametrize(
    ("method", "image", "severity", "message"),
    [
        ("morph", portrait(0), 0.5, "unknown forgery method 'morph'; known: self-blend, swap, resample"),
        ("resample", portrait(0), 1.5, "severity 1.5"),
        ("resample", portrait(0), float("nan"), "severity nan"),
        ("resample", portrait(0).astype(np.float32), 0.5, "uint8"),
        ("resample", portrait(0)[..., 0], 0.5, "uint8"),
        ("swap", portrait(0), 0.5, "donor"),
    ],
)
def test_wrong_arguments_are_named(method: str, image: np.ndarray, severity: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forge(method, image, severity, np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def real_faces(tmp_path: Path) -> Path:
    """Five JPEG and one PNG portraits of five groups (g0 twice), one fake row, videos, and a carried column."""
    rows = []
    for i, group in enumerate(["g0", "g0", "g1", "g2", "g3", "g4"]):
        name = f"in/{i}.png" if i == 5 else f"in/{i}.jpg"
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(portrait(i, 96)).save(tmp_path / name, **({} if i == 5 else {"quality": 85}))
        rows.append(f"{name},real,pristine,{group},d,cam{i},{group}")
    Image.fromarray(portrait(9, 96)).save(tmp_path / "in/9.jpg")
    rows.append("in/9.jpg,fake,other,g9,d,cam9,g9")
    (tmp_path / "faces.csv").write_text("path,label,method,group,dataset,camera,video\n" + "\n".join(rows) + "\n")
    return tmp_path / "faces.csv"


def test_command_passes_originals_through_and_ties_groups(real_faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [f"faces={real_faces}", f"out={out}", "methods=[self-blend, swap]", "severities=[0, 0.5, 1]"]
    run(ForgeConfig, forge_command, arguments)
    table = read_faces(out / "faces.csv")
    check_faces(table)
    # 6 real faces x (1 original + 2 methods x 2 severities above 0); the fake row is left out
    assert table.groupby(["label", "method"]).size().to_dict() == {
        ("fake", "self-blend"): 12,
        ("fake", "swap"): 12,
        ("real", "pristine"): 6,
    }
    assert set(table["camera"]) == {f"cam{i}" for i in range(6)}
    for row in table[table["severity"] == 0].itertuples():
        assert Path(row.path).read_bytes() == (tmp_path / row.source).read_bytes()
    assert set(table.loc[table["label"] == "real", "video"]) == {f"g{i}" for i in range(5)}
    assert set(table.loc[table["method"] == "swap", "video"]) == {
        f"g{i}/swap/{s}" for i in range(5) for s in (0.5, 1.0)
    }
    groups = {f"in/{i}.jpg": group for i, group in enumerate(["g0", "g0", "g1", "g2", "g3"])} | {"in/5.png": "g4"}
    for row in table[table["method"] == "swap"].itertuples():
        assert row.group == f"{groups[row.source]}|{groups[row.donor]}"
        assert groups[row.source] != groups[row.donor]
    # five groups: a pair and a ring of three, never one knot of all
    assert components(table["group"]).max() + 1 == 2
    # a forgery of a file without loss is stored without loss
    assert {Path(path).suffix for path in table.loc[table["source"] == "in/5.png", "path"]} == {".png"}


def test_command_gives_the_same_forgeries_whatever_else_it_forges(real_faces: Path, tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    forge_faces(ForgeConfig(str(real_faces), str(few), ["resample"], [0.5]))
    lines = real_faces.read_text().splitlines()
    real_faces.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    forge_faces(ForgeConfig(str(real_faces), str(many), ["swap", "resample"], [0.25, 0.5]))
    files = sorted((few / "resample/0.5").iterdir())
    assert len(files) == 6
    for file in files:
        assert (many / "resample/0.5" / file.name).read_bytes() == file.read_bytes()


def test_reencoded_originals_went_through_the_encoder_of_the_forgeries(real_faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    forge_faces(ForgeConfig(str(real_faces), str(out), ["self-blend"], [1.0], quality=70, reencode_originals=True))
    table = read_faces(out / "faces.csv")
    jpegs = table[table["source"] != "in/5.png"]
    tables = {
        label: {Image.open(path).quantization[0][0] for path in rows["path"]} for label, rows in jpegs.groupby("label")
    }
    assert tables["real"] == tables["fake"]
    for row in table[table["label"] == "real"].itertuples():
        pixels = np.asarray(Image.open(tmp_path / row.source))
        again = forgeries.encode(pixels, Image.open(row.path).format, 70)
        assert Path(row.path).read_bytes() == again


def test_donors_stay_in_their_split(real_faces: Path, tmp_path: Path) -> None:
    table = pd.read_csv(real_faces)[:6]
    table["split"] = ["train", "train", "test", "test", "train", "train"]
    table.to_csv(real_faces, index=False)
    forge_faces(ForgeConfig(str(real_faces), str(tmp_path / "out"), ["swap"], [1.0]))
    check_splits(read_faces(tmp_path / "out/faces.csv"))


def test_partners_are_disjoint_pairs() -> None:
    even, odd = forgeries.pair("abcdef", 0), forgeries.pair("abcde", 0)
    assert all(even[even[name]] == name != even[name] for name in "abcdef")
    assert sorted(odd.values()) == list("abcde")
    assert sum(odd[odd[name]] == name for name in odd) == 2  # one pair, one ring of three
    assert forgeries.pair("fedcba", 0) == even


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["swop"]}, "no forgery method 'swop'; did you mean 'swap'"),
        ({"methods": []}, "at least one method"),
        ({"severities": [0.5, 2.0]}, "severity 2.0 is not in"),
        ({"quality": 0}, "quality=0"),
        ({"out": "."}, "exists already"),
        ({"faces": "absent.csv"}, "absent.csv"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    real_faces: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    values = {"faces": str(real_faces), "out": str(tmp_path / "out")} | change
    with pytest.raises(InputError, match=message):
        forge_faces(ForgeConfig(**values))
    assert sorted(tmp_path.iterdir()) == before


def test_an_unreadable_face_leaves_nothing_behind(real_faces: Path, tmp_path: Path) -> None:
    file = tmp_path / "in/3.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match=r"in/3.jpg: .*restore the file"):
        forge_faces(ForgeConfig(str(real_faces), str(tmp_path / "out")))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_swap_within_one_group_is_refused(real_faces: Path, tmp_path: Path) -> None:
    lines = real_faces.read_text().splitlines()
    real_faces.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(InputError, match="swap needs two groups in d"):
        forge_faces(ForgeConfig(str(real_faces), str(tmp_path / "out")))
