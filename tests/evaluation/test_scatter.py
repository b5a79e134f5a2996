import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from evaluation.figures import COLOURS, GREY
from evaluation.scatter import RESOLUTION, scatters


def with_embedding(backbone, name, **arrays):
    """A copy of a backbone with three samples at (0, 0), (10, 0) and (0, 5)."""

    columns = {
        "pca": np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 5.0]]),
        "label": np.array([0, 1, 1]),
        "method": np.array(["pristine", "swap", "blend"]),
        "dataset": np.array(["a", "a", "b"]),
    }
    return dataclasses.replace(backbone, name=name, embeddings={"test": {**columns, **arrays}})


@pytest.fixture
def one(benchmark):
    return benchmark(2).backbones[0]


def test_points_keep_their_proportions_and_y_grows_downwards(one):
    # x spans 10, the larger extent, so it fills 0 … 10,000. y spans 5: half of that, in the middle, and turned round:
    # y = 0 lies at 0.75 and y = 5 at 0.25.
    [plot] = scatters([with_embedding(one, "b")])
    assert plot["points"] == {"b": {"PCA": [0, 7500, RESOLUTION, 7500, 0, 2500]}}


def test_factors_name_every_sample_with_its_colour(one):
    [plot] = scatters([with_embedding(one, "b")])
    assert plot["factors"]["label"] == {"names": ["real", "fake"], "colours": [*COLOURS[:2]], "of": [0, 1, 1]}
    assert plot["factors"]["method"]["names"] == ["pristine", "blend", "swap"]
    assert plot["factors"]["method"]["of"] == [0, 2, 1]
    many = np.array([f"m{i}" for i in range(12)])
    arrays = {"pca": np.eye(12)[:, :2], "label": np.ones(12), "method": many, "dataset": many}
    [plot] = scatters([with_embedding(one, "b", **arrays)])
    assert plot["factors"]["method"]["colours"].count(GREY) == 6


def test_groups_are_numbered_and_scores_belong_to_their_backbone(one):
    group, score = np.array(["v7", "v7", "a|b"]), np.array([0.004, 0.5, 0.996])
    [plot] = scatters([with_embedding(one, "a", group=group), with_embedding(one, "b", group=group, score=score)])
    assert plot["groups"] == {"of": [1, 1, 0], "colours": list(COLOURS)}
    assert plot["scores"] == {"b": [0, 50, 100]}
    assert len(set(plot["shades"])) == 11
    [plot] = scatters([with_embedding(one, "c")])
    assert (plot["groups"], plot["scores"]) == (None, {})


def test_backbones_share_a_plot_only_where_they_show_the_same_samples(one):
    other = with_embedding(one, "c", label=np.array([1, 1, 0]))
    plots = scatters([with_embedding(one, "a"), with_embedding(one, "b"), other])
    assert [list(plot["points"]) for plot in plots] == [["a", "b"], ["c"]]


def test_identical_points_have_a_place(one):
    [plot] = scatters([with_embedding(one, "b", pca=np.full((3, 2), 7.0))])
    assert plot["points"]["b"]["PCA"] == [RESOLUTION // 2] * 6


def test_faces_lie_in_one_image_row_by_row(one):
    grey = np.array([40, 120, 200], np.uint8)
    thumbnails = np.broadcast_to(grey[:, None, None, None], (3, 16, 16, 3)).copy()
    [plot] = scatters([with_embedding(one, "b", thumbnail=thumbnails)])
    faces = plot["faces"]
    assert (faces["columns"], faces["size"]) == (2, 16)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(faces["address"].split(",")[1]))))
    tiles = [sheet[8 + 16 * row, 8 + 16 * column, 0] for row in range(2) for column in range(2)]
    assert np.abs(np.array(tiles, int) - [40, 120, 200, 0]).max() < 8  # JPEG


def test_thumbnails_of_another_form_are_refused(one):
    with pytest.raises(ValueError, match=r"uint8 of shape \(n, s, s, 3\), got float64 \(3, 16, 16\)"):
        scatters([with_embedding(one, "b", thumbnail=np.zeros((3, 16, 16)))])
