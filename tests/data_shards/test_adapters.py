"""Public datasets in their own layouts: small trees of the same shape, and the tables expected of them."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from PIL import Image

from data_shards.adapters import ADAPTERS
from data_shards.adapters import faceforensics as faceforensics_adapter
from data_shards.command import InputError
from data_shards.faces import check_faces, check_splits, read_faces
from data_shards.manifest import ShardSet
from data_shards.pack import PackConfig, pack_command


def images(root, *folders):
    """Two face crops in each folder, of which no two are alike."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for frame in range(2):
            path = root / folder / f"{frame:03d}.png"
            Image.frombytes("L", (4, 8), hashlib.sha256(str(path).encode()).digest()).save(path)


def rows(faces, *columns):
    """Distinct values of the columns, one per video."""
    return list(dict.fromkeys(faces[list(columns)].itertuples(index=False, name=None)))


def check_videos(faces):
    """Each folder of frames is one video, and each video is one folder: also of each compression and manipulation."""
    folders = faces["path"].map(os.path.dirname)
    assert len(set(zip(folders, faces["video"], strict=True))) == folders.nunique() == faces["video"].nunique()


@pytest.fixture
def faceforensics(tmp_path):
    """Train (954, 100), validation (200, 201), test (078, 955) and (300, 301); 954 and 955 are of one YouTube video."""
    root = tmp_path / "FaceForensics++"
    for name, pairs in (("train", ["954", "100"]), ("val", ["200", "201"])):
        (root / "splits").mkdir(parents=True, exist_ok=True)
        (root / "splits" / f"{name}.json").write_text(json.dumps([pairs]))
    (root / "test.json").write_text(json.dumps([["078", "955"], ["300", "301"]]))
    pairs = [("954", "100"), ("200", "201"), ("078", "955"), ("300", "301")]
    for compression in ("c23", "c40"):
        frames = f"{compression}/frames"
        images(root, *(f"original_sequences/youtube/{frames}/{sequence}" for pair in pairs for sequence in pair))
        images(root, *(f"manipulated_sequences/Deepfakes/{frames}/{one}_{other}" for one, other in pairs))
    images(root, *(f"manipulated_sequences/FaceSwap/c23/frames/{one}_{other}" for other, one in pairs))
    images(root, "manipulated_sequences/DeepFakeDetection/c23/frames/01_02__talking")  # no official split: not read
    return root


def test_faceforensics_official(faceforensics):
    faces = read_faces(faceforensics, layout="faceforensics")
    check_faces(faces)
    check_videos(faces)
    # c23: 8 reals, 4 + 4 fakes, c40: 8 reals, 4 fakes; 2 images each
    assert faces["dataset"].value_counts().to_dict() == {"ff++-c23": 32, "ff++-c40": 24}
    assert rows(faces[faces["split"] == "validation"], "label", "method", "group", "dataset") == [
        ("real", "pristine", "ff++:200", "ff++-c23"),
        ("real", "pristine", "ff++:201", "ff++-c23"),
        ("fake", "Deepfakes", "ff++:200|ff++:201", "ff++-c23"),
        ("fake", "FaceSwap", "ff++:201|ff++:200", "ff++-c23"),
        ("real", "pristine", "ff++:200", "ff++-c40"),
        ("real", "pristine", "ff++:201", "ff++-c40"),
        ("fake", "Deepfakes", "ff++:200|ff++:201", "ff++-c40"),
    ]


def test_faceforensics_clean_drops_the_touched_test_pair(faceforensics):
    official = read_faces(faceforensics, layout="faceforensics")
    clean = read_faces(faceforensics, layout="faceforensics-clean")
    check_faces(clean)
    lost = official[~official["path"].isin(clean["path"])]
    assert {group for groups in lost["group"] for group in groups.split("|")} == {"ff++:078", "ff++:955"}
    assert len(lost) == 2 * (4 + 3)  # c23: two reals and two fakes of the pair, c40: two reals and one fake
    train = [faces.loc[faces["split"] == "train", "path"].tolist() for faces in (clean, official)]
    assert train[0] == train[1]
    assert len(train[0]) == 2 * (4 + 3)
    # With the video's tie written out, the official split is refused and the clean one is not.
    tie = {"ff++:954": "ff++:954|ff++:955"}
    with pytest.raises(InputError, match="is in the splits train and test"):
        check_splits(official.replace({"group": tie}))
    check_splits(clean.replace({"group": tie}))


def test_faceforensics_clean_ties_all_sequences_of_a_video(faceforensics):
    """conversion_dict.json: 200 and 300 were cut from one video; 954 and 955 as well."""
    videos = {"954": "yv-f 0", "955": "yv-f 1", "100": "a 0", "201": "b 0", "200": "-c_ 0", "300": "-c_ 1"}
    known = read_faces(faceforensics, layout="faceforensics-clean")
    assert set(known.loc[known["split"] == "train", "group"]) == {
        *("ff++:954|ff++:youtube:954+955", "ff++:100"),
        *("ff++:954|ff++:100|ff++:youtube:954+955", "ff++:100|ff++:954|ff++:youtube:954+955"),
    }
    (faceforensics / "conversion_dict.json").write_text(json.dumps(videos))
    clean = read_faces(faceforensics, layout="faceforensics-clean")
    assert clean["path"].tolist() == known["path"].tolist()
    assert set(clean.loc[clean["split"] == "validation", "group"]) == {
        *("ff++:200|ff++:youtube:-c_", "ff++:201"),
        *("ff++:200|ff++:201|ff++:youtube:-c_", "ff++:201|ff++:200|ff++:youtube:-c_"),
    }
    with pytest.raises(InputError, match="is in the splits validation and test"):
        check_splits(clean)  # what the official split files do not do
    videos["300"] = "d"
    (faceforensics / "conversion_dict.json").write_text(json.dumps(videos))
    with pytest.raises(InputError, match="'300' is 'd', not like"):
        read_faces(faceforensics, layout="faceforensics-clean")


def test_faceforensics_clean_drops_the_same_pairs_with_and_without_the_list_of_videos(faceforensics):
    """Official: 606 and 605 (in training) are of one video, and 567 and 566 of another; (606, 567) and (566, 617) are
    validation pairs. Here 078, of the touched pair (078, 955), and 300, of (300, 301), are of one video."""
    known = read_faces(faceforensics, layout="faceforensics-clean")
    videos = {"954": "yv-f 0", "955": "yv-f 1", "078": "lB 0", "300": "lB 1", "301": "a 0", "100": "b 0"}
    (faceforensics / "conversion_dict.json").write_text(json.dumps(videos))
    listed = read_faces(faceforensics, layout="faceforensics-clean")
    check_faces(listed)
    assert listed["path"].tolist() == known["path"].tolist()
    test = listed[listed["split"] == "test"]
    assert set(test["group"].str.replace("|ff++:youtube:lB", "")) == {
        *("ff++:300", "ff++:301", "ff++:300|ff++:301", "ff++:301|ff++:300"),
    }
    of_training = {name for group in listed.loc[listed["split"] == "train", "group"] for name in group.split("|")}
    assert of_training.isdisjoint(name for group in test["group"] for name in group.split("|"))


def test_a_partial_copy_is_read_with_a_warning(faceforensics, caplog, monkeypatch):
    read_faces(faceforensics, layout="faceforensics")
    assert (
        "has 2 / 2 / 4 original sequences (train / validation / test), the official split 720 / 140 / 140"
        in caplog.text
    )
    caplog.clear()
    monkeypatch.setattr(faceforensics_adapter, "OFFICIAL", {"train": 2, "validation": 2, "test": 4})
    read_faces(faceforensics, layout="faceforensics")
    assert not caplog.text


def test_one_benchmark_evaluates_the_official_and_the_clean_test_set(faceforensics, tmp_path):
    from data_shards.command import from_dict
    from jobs.benchmark import check
    from jobs.experiment import Experiment

    sets = {layout: tmp_path / layout for layout in ("faceforensics", "faceforensics-clean")}
    for layout, out in sets.items():
        pack_command(PackConfig(str(faceforensics), str(out), layout=layout, only="ff++-c23", workers=1))
    official, clean = ([ShardSet.open(out / split) for split in ("train", "test")] for out in sets.values())
    assert official[0].column("sha256").tolist() == clean[0].column("sha256").tolist()
    assert len(official[1]) == len(clean[1]) + 2 * 4
    data = {split: str(sets["faceforensics"] / split) for split in ("train", "validation", "test")}
    data["unseen"] = {"ff++-c23-clean": str(sets["faceforensics-clean"] / "test")}  # as docs/adapters.md says
    text = {"name": "both", "title": "both", "notice": "a test"}
    check(from_dict(Experiment, {**text, "data": data, "backbones": [{"name": "imagenet_mobilenetv2"}]}))


def test_faceforensics_packs_one_compression(faceforensics, tmp_path):
    config = PackConfig(str(faceforensics), str(tmp_path / "out"), layout="faceforensics", only="ff++-c40", workers=1)
    pack_command(config)
    found = ShardSet.open(tmp_path / "out" / "test")
    assert found.manifest["datasets"] == {"ff++-c40": 12}  # 4 reals and 2 fakes, 2 images each
    assert "original_sequences/youtube/c40/frames/078/000.png" in found.column("path")
    assert "ff++-c40:Deepfakes/078_955" in found.videos


def test_faceforensics_mistakes(faceforensics, tmp_path):
    images(faceforensics, "original_sequences/youtube/c23/frames/999")
    with pytest.raises(InputError, match="sequence '999' is in no official split file"):
        read_faces(faceforensics, layout="faceforensics")
    (faceforensics / "test.json").write_text(json.dumps([["078", "955"], ["300", "200"]]))
    with pytest.raises(InputError, match=r"test\.json lists '200', which is in validation already"):
        read_faces(faceforensics, layout="faceforensics")
    (faceforensics / "test.json").unlink()
    with pytest.raises(InputError, match=r"has no test\.json"):
        read_faces(faceforensics, layout="faceforensics")


def test_celeb_df(tmp_path, caplog):
    images(tmp_path, "Celeb-real/frames/id0_0000", "Celeb-real/frames/id1_0003", "YouTube-real/frames/00170")
    images(tmp_path, "Celeb-synthesis/frames/id0_id1_0000", "Celeb-synthesis/frames/id1_id0_0003")
    lines = ["1 YouTube-real/00170.mp4", "1 Celeb-real/id0_0000.mp4", "0 Celeb-synthesis/id0_id1_0000.mp4", ""]
    (tmp_path / "List_of_testing_videos.txt").write_text("\n".join(lines))
    faces = read_faces(tmp_path, layout="celeb-df")
    check_faces(faces)
    check_videos(faces)
    assert rows(faces, "label", "method", "group", "dataset", "split") == [
        ("real", "pristine", "celeb-df:id0_0000", "celeb-df-v2", "test"),
        ("real", "pristine", "celeb-df:00170", "celeb-df-v2", "test"),
        ("fake", "Celeb-synthesis", "celeb-df:id0_0000", "celeb-df-v2", "test"),
    ]
    assert "lists 3 videos, the official list of Celeb-DF v2 518" in caplog.text
    (tmp_path / "List_of_testing_videos.txt").write_text("0 YouTube-real/00170.mp4\n")
    with pytest.raises(InputError, match=r"line 1: .* is not like"):
        read_faces(tmp_path, layout="celeb-df")
    (tmp_path / "List_of_testing_videos.txt").write_text("")
    with pytest.raises(InputError, match="name no image"):
        read_faces(tmp_path, layout="celeb-df")
    (tmp_path / "List_of_testing_videos.txt").write_text("1 YouTube-real/00171.mp4\n")
    with pytest.raises(InputError, match="00171 has no images, but the test list names it"):
        read_faces(tmp_path, layout="celeb-df")


def test_dfdc(tmp_path):
    metadata = {
        "aa.mp4": {"label": "FAKE", "split": "train", "original": "bb.mp4"},
        "bb.mp4": {"label": "REAL", "split": "train"},
        "cc.mp4": {"label": "FAKE", "split": "train", "original": "not-here.mp4"},
    }
    for part in ("dfdc_train_part_0", "dfdc_train_part_1"):
        images(tmp_path / "train" / part, *(f"frames/{name}" for name in ("aa", "bb", "cc")))
        names = {name.replace(".", f"{part[-1]}."): value for name, value in metadata.items()}
        (tmp_path / "train" / part / "metadata.json").write_text(json.dumps({**metadata, **names}))
    faces = read_faces(tmp_path, layout="dfdc")
    check_faces(faces)
    assert "split" not in faces.columns
    assert rows(faces, "label", "method", "group", "dataset", "video") == [
        ("fake", "dfdc", "dfdc:bb", "dfdc", "dfdc:aa"),
        ("real", "pristine", "dfdc:bb", "dfdc", "dfdc:bb"),
        ("fake", "dfdc", "dfdc:not-here", "dfdc", "dfdc:cc"),
    ]
    images(tmp_path / "train" / "dfdc_train_part_1", "frames/zz")
    with pytest.raises(InputError, match=r"does not say whether zz\.mp4"):
        read_faces(tmp_path, layout="dfdc")
    (tmp_path / "train" / "dfdc_train_part_1" / "metadata.json").write_text(json.dumps({"aa.mp4": {"label": "FAKE"}}))
    with pytest.raises(InputError, match=r"part_1/metadata\.json does not name the original of aa\.mp4"):
        read_faces(tmp_path, layout="dfdc")


def test_dfdc_test(tmp_path):
    images(tmp_path, "frames/aa", "frames/bb")
    (tmp_path / "labels.csv").write_text("filename,label\naa.mp4,1\nbb.mp4,0\n")
    faces = read_faces(tmp_path, layout="dfdc-test")
    check_faces(faces)
    check_videos(faces)
    assert rows(faces, "label", "group", "split") == [("fake", "dfdc:aa", "test"), ("real", "dfdc:bb", "test")]


def listed(folder, label):
    return {"label": label, "frames": [f"{folder}/{frame:03d}.png" for frame in range(2)]}


def test_deepfakebench_faceforensics(tmp_path):
    """One compression below each split; Windows separators, as in the published files."""
    content = {"FF-real": {}, "FF-DF": {}}
    for split, one, other in (("train", "000", "001"), ("val", "002", "003"), ("test", "004", "005")):
        real = [f"FaceForensics++/original_sequences/youtube/c23/frames/{name}" for name in (one, other)]
        fake = f"FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/{one}_{other}"
        images(tmp_path / "rgb", *real, fake)
        content["FF-real"][split] = {"c23": {name[-3:]: listed(name, "FF-real") for name in real}}
        content["FF-DF"][split] = {"c23": {fake[-7:]: listed(fake.replace("/", "\\"), "FF-DF")}}
    (tmp_path / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": content}))
    faces = read_faces(tmp_path / "FaceForensics++.json", layout="deepfakebench", root=tmp_path / "rgb")
    check_faces(faces)
    check_videos(faces)
    assert rows(faces[faces["split"] == "validation"], "label", "method", "group", "dataset") == [
        ("real", "pristine", "ff++:002", "ff++-c23"),
        ("real", "pristine", "ff++:003", "ff++-c23"),
        ("fake", "Deepfakes", "ff++:002|ff++:003", "ff++-c23"),
    ]
    assert len(faces) == 18


def test_deepfakebench_keeps_a_video_in_one_split(tmp_path):
    """Celeb-DF as DeepfakeBench writes it: every video in train, the test list again in test and in val."""
    names = {"Celeb-real": "id0_0000", "Celeb-synthesis": "id0_id1_0000", "YouTube-real": "00001"}
    paths = {folder: f"Celeb-DF-v2/{folder}/frames/{name}" for folder, name in names.items()}
    images(tmp_path, *paths.values())
    real = {names[folder]: listed(paths[folder], "CelebDFv2_real") for folder in ("Celeb-real", "YouTube-real")}
    fake = {"id0_id1_0000": listed(paths["Celeb-synthesis"], "CelebDFv2_fake")}
    tested = {"id0_0000": real["id0_0000"]}
    content = {
        "CelebDFv2_real": {"train": real, "val": tested, "test": tested},
        "CelebDFv2_fake": {"train": fake, "val": fake, "test": fake},
    }
    (tmp_path / "Celeb-DF-v2.json").write_text(json.dumps({"Celeb-DF-v2": content}))
    faces = read_faces(tmp_path / "Celeb-DF-v2.json", layout="deepfakebench")
    assert rows(faces, "label", "method", "group", "split") == [
        ("real", "pristine", "celeb-df:id0_0000", "test"),
        ("fake", "CelebDFv2_fake", "celeb-df:id0_0000", "test"),
        ("real", "pristine", "celeb-df:00001", "train"),
    ]
    check_videos(faces)
    tested_only = read_faces(tmp_path / "Celeb-DF-v2.json", layout="deepfakebench-test")
    check_faces(tested_only)
    assert rows(tested_only, "label", "split") == [("real", "test"), ("fake", "test")]


@pytest.mark.parametrize(
    ("dataset", "label", "real", "fake", "groups"),
    [
        ("Celeb-DF-v1", "CelebDFv1", "id0_0000", "id0_id1_0000", ("celeb-df:id0_0000", "celeb-df:id0_0000")),
        ("UADFV", "UADFV", "0000", "0000_fake", ("uadfv:0000", "uadfv:0000")),
        (
            "DeepFakeDetection",
            "DFD",
            "02__hugging_happy",
            "01_02__hugging_happy__YVGY8LOK",
            ("dfd:02", "dfd:01|dfd:02"),
        ),
    ],
)
def test_deepfakebench_ties_a_fake_to_its_real(tmp_path, dataset, label, real, fake, groups):
    """Names as in the datasets; a real one in training and its fake in the test split do not pass."""
    videos = {"real": {"train": real, "test": "77__77"}, "fake": {"train": "99__99", "test": fake}}
    content = {
        f"{label}_{kind}": {split: {name: listed(f"{dataset}/{kind}/frames/{name}", "")} for split, name in of.items()}
        for kind, of in videos.items()
    }
    (tmp_path / f"{dataset}.json").write_text(json.dumps({dataset: content}))
    faces = read_faces(tmp_path / f"{dataset}.json", layout="deepfakebench")
    group = dict(rows(faces, "video", "group"))
    assert (group[f"{dataset}/real/frames/{real}"], group[f"{dataset}/fake/frames/{fake}"]) == groups
    with pytest.raises(InputError, match="is in the splits train and test"):
        check_splits(faces)


DEEPER = {
    "DF_real": ["DeeperForensics-1.0/source_videos/M101/frames/M101_light_uniform_neutral_camera_front"],
    "DF_fake": ["DeeperForensics-1.0/manipulated_videos/end_to_end/frames/000_M101"],
}
PREVIEW = {
    "DFDCP_Real": ["DFDCP/original_videos/frames/1003254_A_001", "DFDCP/original_videos/frames/1003254_A_002"],
    "DFDCP_FakeA": ["DFDCP/method_A/frames/1255229_1003254_A_001"],
    "DFDCP_FakeB": ["DFDCP/method_B/frames/1255229_1003254_A_002"],
}


def deepfakebench(folder, dataset, labels):
    """A JSON file as DeepfakeBench writes it, all in the test split."""
    content = {
        label: {"train": {}, "val": {}, "test": {name.split("/")[-1]: listed(name, label) for name in names}}
        for label, names in labels.items()
    }
    (folder / f"{dataset}.json").write_text(json.dumps({dataset: content}))
    return folder / f"{dataset}.json"


@pytest.mark.parametrize(
    ("dataset", "labels", "groups"),
    [
        ("DeeperForensics-1.0", DEEPER, ["deeperforensics:M101", "ff++:000|deeperforensics:M101"]),
        (
            "DFDCP",
            PREVIEW,
            ["dfdcp:1003254_A_001", "dfdcp:1003254_A_002", "dfdcp:1003254_A_001", "dfdcp:1003254_A_002"],
        ),
    ],
)
def test_deepfakebench_ties_fakes_to_their_sources_by_name(tmp_path, dataset, labels, groups):
    faces = read_faces(deepfakebench(tmp_path, dataset, labels), layout="deepfakebench-test")
    assert [group for group, _ in rows(faces, "group", "video")] == groups
    check_videos(faces)
    fake = next(label for label in labels if "ake" in label)
    file = deepfakebench(tmp_path, dataset, {**labels, fake: ["some/frames/other_name"]})
    with pytest.raises(
        InputError, match=f"{dataset}.json: {fake} some/frames/other_name is not named like .* its source"
    ):
        read_faces(file, layout="deepfakebench-test")


def test_deeperforensics_is_not_unseen_after_training_on_its_targets(faceforensics, tmp_path):
    """Target 100 is in the training set of FaceForensics++, target 078 in its test set."""
    from jobs import leaks

    pack_command(
        PackConfig(str(faceforensics), str(tmp_path / "ff"), layout="faceforensics", only="ff++-c23", workers=1)
    )
    known = {split: tmp_path / "ff" / split for split in ("train", "validation", "test")}
    for target in ("078", "100"):
        labels = {"DF_real": DEEPER["DF_real"], "DF_fake": [f"DF/frames/{target}_M101"]}
        (tmp_path / target).mkdir()
        images(tmp_path / target, *labels["DF_real"], *labels["DF_fake"])
        file = deepfakebench(tmp_path / target, "DeeperForensics-1.0", labels)
        pack_command(PackConfig(str(file), str(tmp_path / target / "out"), layout="deepfakebench-test", workers=1))
    leaks.check({**known, "unseen": tmp_path / "078" / "out" / "test"})
    with pytest.raises(InputError, match=r"group 'ff\+\+:100' is in both 'train' and 'unseen'"):
        leaks.check({**known, "unseen": tmp_path / "100" / "out" / "test"})


def test_deepfakebench_video_without_a_key(tmp_path):
    """DFDC's "val" holds one video directly; it is named by its folder and stays in the split that lists it."""
    content = {
        "DFDC_Real": {"train": {}, "val": listed("DFDC/test/frames/aa", "DFDC_Real"), "test": {}},
        "DFDC_Fake": {"train": {}, "val": {}, "test": {"bb": listed("DFDC/test/frames/bb", "DFDC_Fake")}},
    }
    (tmp_path / "DFDC.json").write_text(json.dumps({"DFDC": content}))
    faces = read_faces(tmp_path / "DFDC.json", layout="deepfakebench")
    assert rows(faces, "label", "group", "split") == [("fake", "dfdc:bb", "test"), ("real", "dfdc:aa", "validation")]
    check_videos(faces)


def test_unfit_sources(tmp_path):
    (tmp_path / "a.json").write_text('{"x": {"y": {"dev": {"v": {"frames": ["a.png"]}}}}}')
    (tmp_path / "b.json").write_text("[]")
    for source, layout, message in (
        (tmp_path, "celebdf", "did you mean 'celeb-df'"),
        (tmp_path / "none", "dfdc", "there is nothing at"),
        (tmp_path / "a.json", "deepfakebench", "x/y/dev/v is not like"),
        (tmp_path / "b.json", "deepfakebench", "holds a JSON list"),
    ):
        with pytest.raises(InputError, match=message):
            read_faces(source, layout=layout)


@pytest.mark.parametrize("layout", ADAPTERS)
def test_an_empty_folder_is_none_of_them(layout, tmp_path):
    with pytest.raises(InputError):
        read_faces(tmp_path, layout=layout)
