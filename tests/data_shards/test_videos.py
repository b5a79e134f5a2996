"""The column ``video`` of a face table on its way into the index."""

import numpy as np

from data_shards.faces import read_faces
from data_shards.manifest import ShardSet
from data_shards.pack import pack


def test_names_of_videos_arrive_as_they_were_given(faces_csv, tmp_path):
    faces = read_faces(faces_csv).assign(video=[f"{row:03d}" for row in range(30)])
    faces.to_csv(faces_csv, index=False)
    faces = read_faces(faces_csv)  # 007 is a name, not a number
    (packed,) = pack(faces, faces_csv.parent, tmp_path / "out", fractions={"test": 1}, workers=1).values()
    shards = ShardSet.open(packed)
    wanted = dict(zip(faces["path"], faces["video"], strict=True))
    assert shards.videos.tolist() == [wanted[str(faces_csv.parent / path)] for path in shards.column("path")]
    assert "007" in shards.videos


def test_a_table_without_videos_has_none(shard_sets):
    assert all(ShardSet.open(path).videos is None for path in shard_sets.values())


def test_parquet_numbers_become_names(faces_csv, tmp_path):
    read_faces(faces_csv).assign(video=np.arange(30)).to_parquet(tmp_path / "faces.parquet")
    assert read_faces(tmp_path / "faces.parquet")["video"].tolist() == [str(row) for row in range(30)]
