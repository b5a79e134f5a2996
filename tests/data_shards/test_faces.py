"""Face tables: what is read, and that every mistake names its row."""

from __future__ import annotations

import io
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_shards.command import InputError
from data_shards.faces import MAX_PIXELS, check_faces, check_image, read_faces


def encoded(kind, size=(32, 24), **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_csv_and_parquet_give_the_same(faces_csv):
    faces = read_faces(faces_csv)
    assert list(faces.columns) == ["path", "label", "method", "group", "dataset"]
    assert faces["path"][0] == str(faces_csv.parent / "pristine" / "g0000.jpg")
    assert faces.iloc[1, 1:].tolist() == ["fake", "blend", "g0000", "tiny"]
    parquet = faces_csv.with_suffix(".parquet")
    pd.read_csv(faces_csv, dtype=str).to_parquet(parquet)
    pd.testing.assert_frame_equal(read_faces(parquet), faces)
    check_faces(faces)


def test_text_stays_text_and_extras_keep_their_type(faces_csv):
    table = pd.read_csv(faces_csv, dtype=str).assign(group="007", frame=np.arange(30), severity=0.5)
    table.loc[table["label"] == "fake", "method"] = "NA"
    table.to_csv(faces_csv, index=False)
    faces = read_faces(faces_csv)
    assert set(faces["group"]) == {"007"}
    assert set(faces["method"]) == {"pristine", "NA"}
    assert faces["frame"].tolist() == list(range(30))
    assert faces["severity"].dtype == float
    check_faces(faces)


def test_root_and_dataset(faces_csv, tmp_path):
    table = pd.read_csv(faces_csv, dtype=str).drop(columns="dataset")
    table.to_csv(tmp_path / "elsewhere.csv", index=False)
    faces = read_faces(tmp_path / "elsewhere.csv", root=faces_csv.parent, dataset="named")
    assert set(faces["dataset"]) == {"named"}
    check_faces(faces)
    with pytest.raises(InputError, match="has no column 'dataset'"):
        read_faces(tmp_path / "elsewhere.csv")
    with pytest.raises(InputError, match="leave out dataset=other"):
        read_faces(faces_csv, dataset="other")


def tree(folder, *names):
    """A folder tree with these files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def rows_of(source):
    faces = read_faces(source)
    faces["path"] = [os.path.relpath(path, source) for path in faces["path"]]
    return list(faces.itertuples(index=False, name=None))


def test_folder_tree_of_videos(tmp_path):
    names = "real/a.jpg", "real/v1/0.png", "fake/a.jpg", "fake/swap/v1/x/0.webp", "fake/.h.jpg", "real/notes.txt"
    assert rows_of(tree(tmp_path / "tree", *names)) == [
        ("real/a.jpg", "real", "pristine", "tree:a", "tree"),
        ("real/v1/0.png", "real", "pristine", "tree:v1", "tree"),
        ("fake/a.jpg", "fake", "unknown", "tree:a", "tree"),
        ("fake/swap/v1/x/0.webp", "fake", "swap", "tree:v1/x", "tree"),
    ]


def test_folder_tree_without_videos(tmp_path):
    assert rows_of(tree(tmp_path / "tree", "real/a.jpg", "fake/a.jpg", "fake/swap/a.jpeg")) == [
        ("real/a.jpg", "real", "pristine", "tree:a", "tree"),
        ("fake/a.jpg", "fake", "unknown", "tree:a", "tree"),
        ("fake/swap/a.jpeg", "fake", "swap", "tree:a", "tree"),
    ]


def test_equal_names_of_two_trees_are_not_one_group(tmp_path):
    groups = []
    for name in ("ours", "theirs"):
        tree(tmp_path / name, "real/00000.png", "fake/00000.png")
        groups += [{row[3] for row in rows_of(tmp_path / name)}]
    assert groups == [{"ours:00000"}, {"theirs:00000"}]
    assert set(read_faces(tmp_path / "theirs", dataset="ours")["group"]) == {"ours:00000"}  # parts of one dataset tie


def test_frames_of_a_fake_video_are_not_taken_for_groups_of_their_own(tmp_path):
    """fake/VIDEO/FRAME with the method left out: every frame would be a group, and the video in all splits."""
    frames = [f"{video}/{frame}.png" for video in ("real/v1", "real/v2", "fake/v1", "fake/v2") for frame in range(3)]
    with pytest.raises(
        InputError, match=r"is .*fake/v1 a method or a video\? .*/real/v1 is a video, so fakes are fake/"
    ):
        read_faces(tree(tmp_path, *frames))


def test_pictures_of_other_kinds_are_not_left_out_without_a_word(tmp_path):
    source = tree(
        tmp_path, "real/a.jpg", "real/b.bmp", "fake/a.jpg", "fake/swap/c.TIFF", "fake/.d.gif", "fake/list.txt"
    )
    with pytest.raises(InputError, match=r"has 2 pictures of kinds that are not read, such as .*real/b\.bmp; convert"):
        read_faces(source)


def test_a_folder_is_not_read_twice_through_links(tmp_path):
    source = tree(tmp_path, "real/v1/a.jpg", "fake/swap/v1/a.jpg")
    (source / "fake" / "swap" / "v1" / "up").symlink_to(source / "fake")  # a loop
    with pytest.raises(InputError, match=r"fake/swap/v1/up is the folder .*/fake once more; remove the link"):
        read_faces(source)
    (source / "fake" / "swap" / "v1" / "up").unlink()
    (source / "real" / "v2").symlink_to(source / "real" / "v1")
    with pytest.raises(InputError, match=r"real/v2 is the folder .*/real/v1 once more"):
        read_faces(source)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    source, scandir = tree(tmp_path, "real/v1/a.jpg", "real/v2/a.jpg", "fake/swap/v1/a.jpg"), os.scandir

    def refuse(folder):
        if str(folder).endswith("v2"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # the rights of a file do not stop root
    with pytest.raises(InputError, match=r"the folder .*real/v2 cannot be read: Permission denied"):
        read_faces(source)


def test_file_name_that_is_not_utf8(tmp_path):
    for label in ("real", "fake"):
        (tmp_path / label).mkdir()
        with open(os.fsencode(tmp_path / label) + b"/\xff.jpg", "wb") as file:
            file.write(encoded("JPEG"))
    with pytest.raises(InputError, match="not UTF-8"):
        check_faces(read_faces(tmp_path))


def test_sources_that_are_none(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "table.txt").write_text("path")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for source, message in (
        (tmp_path, "has no folder 'fake'"),
        (tmp_path / "none.csv", "there is no face table"),
        (tmp_path / "table.txt", "is .csv or .parquet"),
        (tmp_path / "broken.parquet", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_faces(source)
    (tmp_path / "fake").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        read_faces(tmp_path)


def replaced(column, row, value):
    def change(faces):
        faces.loc[row, column] = value
        return faces

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="method"), "no column 'method'"),
        (lambda f: f.iloc[:0], "no rows"),
        (replaced("label", 3, "Real"), r"row 4 \(.*g0001.jpg\) has label 'Real'; known: real, fake"),
        (replaced("method", 0, "swap"), r"row 1 .*g0000.jpg. is real with method 'swap'"),
        (replaced("method", 1, "pristine"), r"row 2 .*g0000.jpg. is fake with method 'pristine'"),
        (replaced("group", 2, ""), r"row 3 .*g0000.jpg. has no group"),
        (
            replaced("group", 2, "g0|"),
            r"row 3 \(.*g0000.jpg\) has group 'g0\|', where an id is empty or has blanks around it; join",
        ),
        (replaced("group", 4, "g0||g1"), "row 5 .*an id is empty"),
        (replaced("group", 4, "g0 | g1"), "row 5 .*'g0 . g1', where an id is empty or has"),
        (replaced("group", 4, " g0"), "row 5 .*' g0', where an id is empty or has"),
        (replaced("dataset", 5, None), r"row 6 .*g0001.jpg. has no dataset"),
        (replaced("path", 2, "gone.jpg"), "row 3: there is no file .*gone.jpg"),
        (replaced("path", 2, "a.bmp"), "row 3: a.bmp is none of .jpg"),
        (replaced("path", 2, "a\nb.jpg"), "row 3: the path .* has control characters"),
        (lambda f: pd.concat([f, f[2:3]]), "row 31 lists .*g0000.jpg a second time"),
        (lambda f: f.assign(split=["train"] * 29 + [""]), "row 30 .*g0009.jpg. has no split while others have"),
        (lambda f: f.assign(split=["train"] * 29 + [None]), "row 30 .*g0009.jpg. has no split while others have"),
        (lambda f: f.assign(split="valid"), r"row 1 .*g0000.jpg. has split 'valid'; did you mean 'validation'"),
        (lambda f: f.assign(split=["train", "test"] * 15), "group 'g0000' is in the splits train and test"),
        (
            lambda f: f.assign(split=["train"] * 15 + ["test"] * 15, group=f["group"].replace("g0009", "g0009|g0001")),
            "group 'g0001' is in the splits train and test",
        ),
        (lambda f: f[f["label"] == "fake"].assign(split="test"), "split 'test' has no real image"),
        (lambda f: f.assign(video=["v"] + [""] * 29), r"row 2 .*g0000.jpg. has no video while others have"),
        (lambda f: f.assign(video=f["group"]), "video 'g0000' has more than one label"),
        (lambda f: f.assign(video=f["group"] + f["label"]), "video 'g0000fake' has more than one method"),
        (lambda f: f.assign(video=f["method"]), "video 'blend' has more than one group"),
    ],
)
def test_mistakes_name_the_row(faces_csv, change, message):
    with pytest.raises(InputError, match=message):
        check_faces(change(read_faces(faces_csv)), faces_csv.parent)


def test_empty_file(faces_csv):
    (faces_csv.parent / "blend" / "g0001.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"row 5: .*blend/g0001.jpg is empty"):
        check_faces(read_faces(faces_csv))


@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", ".jpg"), ("JPEG", ".jpeg"), ("PNG", ".png"), ("WEBP", ".webp")]
)
def test_image_sizes(kind, extension):
    data = encoded(kind)
    assert check_image(data, extension) == (24, 32)
    for cut in (0, 10, len(data) // 2, len(data) - 20):
        with pytest.raises(ValueError, match=r"not a readable image|is empty"):
            check_image(data[:cut], extension)


def test_other_jpegs_are_images():
    gray, cmyk = io.BytesIO(), io.BytesIO()
    Image.new("L", (9, 5)).save(gray, "JPEG")
    Image.new("CMYK", (9, 5)).save(cmyk, "JPEG")
    for data in (gray.getvalue(), cmyk.getvalue(), encoded("JPEG", (32, 24), progressive=True)):
        assert check_image(data, ".jpg")[0] > 0


def test_zeroed_end_of_a_jpeg():
    data = encoded("JPEG", (128, 128))
    with pytest.raises(ValueError, match="not a readable image"):
        check_image(data[: len(data) // 2] + bytes(len(data) - len(data) // 2), ".jpg")


def test_without_decoding_a_cut_is_still_found():
    data = encoded("JPEG", (128, 128))
    thumbnail = b"\xff\xe1" + (2 + len(data)).to_bytes(2) + data  # an end marker that is not that of the image
    whole = data[:2] + thumbnail + data[2:]
    assert check_image(whole, ".jpg", decode=False) == (128, 128)
    assert check_image(whole + b"trailing note", ".jpg", decode=False) == (128, 128)
    for cut in (len(whole) - 2, len(whole) - 700):
        with pytest.raises(ValueError, match="no end marker"):
            check_image(whole[:cut], ".jpg", decode=False)
    assert check_image(whole[:-700] + bytes(600) + whole[-100:], ".jpg", decode=False) == (128, 128)
    with pytest.raises(ValueError, match="not a readable image"):
        check_image(whole[:-700] + bytes(600) + whole[-100:], ".jpg")


def test_a_picture_that_no_loader_reads_is_not_packed():
    """16 bits a channel."""
    grey = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(grey, "PNG")
    with pytest.raises(ValueError, match="mode I;16 has more than 8 bits a channel; convert it to 8"):
        check_image(grey.getvalue(), ".png")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        flat = io.BytesIO()
        Image.new(mode, (8, 8)).save(flat, "PNG")
        assert check_image(flat.getvalue(), ".png", decode=False) == (8, 8)


def test_name_must_say_what_the_content_is():
    with pytest.raises(ValueError, match="the content is PNG, the name says JPEG"):
        check_image(encoded("PNG"), ".jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bomb_is_refused_before_it_is_decoded():
    """A PNG of 10,000 x 10,000 pixels in some 12 kB."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    assert MAX_PIXELS < 10_000 * 10_000
    with pytest.raises(ValueError, match="10000x10000 pixels are more than the limit"):
        check_image(buffer.getvalue(), ".png")
