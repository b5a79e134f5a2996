"""Interactive scatter plots for the report: the pictures of a data set in one plot, with the face under the pointer."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.figures import COLOURS, FIRST_COLOUR, category_colours, label_names
from evaluation.results import BackboneResult, pretty

RESOLUTION = 10_000  # points are integers from 0 to this: exact to a tenth of a pixel, and short as text
KINDS = ("pca", "t-SNE", "tsne", "umap")


def scatters(backbones: Sequence[BackboneResult]) -> list[dict[str, Any]]:
    """One plot per data set, over all backbones whose pictures show the same samples in the same order.

    Returns JSON-able dicts: ``data``; ``points`` (backbone → kind → x0, y0, x1, y1, … from 0 to 10,000);
    ``factors`` (name → ``names``, ``colours`` and ``of``, an index into both per sample); ``groups`` (``of``, a number
    per sample, and ``colours``, which repeat: there are more groups than colours) where the arrays hold ``group``;
    ``scores`` (backbone → per cent per sample) where they hold ``score``, the probability of being fake after
    fine-tuning, and ``shades``, the colours from 0 to 100 %; ``faces`` (``address`` of one image of square tiles,
    ``columns``, ``size``) where they hold ``thumbnail``, uint8 (n, s, s, 3).
    """
    plots: dict[tuple[str, bytes], dict[str, Any]] = {}
    for backbone in backbones:
        for data, arrays in backbone.embeddings.items():
            values = {
                "label": label_names(arrays["label"]),
                "method": np.asarray(arrays["method"], str),
                "dataset": np.asarray(arrays["dataset"], str),
            }
            same = (data, b"".join(np.ascontiguousarray(column).tobytes() for column in values.values()))
            if same not in plots:
                factors = {name: _factor(column, FIRST_COLOUR[name]) for name, column in values.items()}
                plots[same] = {"data": data, "points": {}, "factors": factors, "faces": None, "groups": None}
                plots[same] |= {"scores": {}, "shades": _shades()}
            plot = plots[same]
            plot["points"][backbone.name] = {pretty(kind): _integers(arrays[kind]) for kind in KINDS if kind in arrays}
            if plot["groups"] is None and "group" in arrays:
                numbers = np.unique(arrays["group"], return_inverse=True)[1]
                plot["groups"] = {"of": numbers.tolist(), "colours": list(COLOURS)}
            if "score" in arrays:
                plot["scores"][backbone.name] = np.rint(100 * np.asarray(arrays["score"])).astype(int).tolist()
            if plot["faces"] is None and "thumbnail" in arrays:
                plot["faces"] = _tiles(arrays["thumbnail"])
    return list(plots.values())


def _shades() -> list[str]:
    """Eleven colours from blue to yellow, which colour-blind readers tell apart; the lightest would vanish on white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 0.95, 11))]


def _factor(values: np.ndarray, first_colour: int) -> dict[str, Any]:
    colours = category_colours(values, first_colour)
    names = list(colours)
    position = {name: i for i, name in enumerate(names)}
    return {"names": names, "colours": list(colours.values()), "of": [position[str(value)] for value in values]}


def _integers(points: Any) -> list[int]:
    """Both axes on one scale, so that distances keep their proportions; y grows downwards as on a screen."""
    points = np.asarray(points, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    span = max((high - low).max(), np.finfo(float).tiny)
    unit = (points - (low + high) / 2) / span + 0.5
    unit[:, 1] = 1 - unit[:, 1]
    return np.rint(unit * RESOLUTION).astype(int).ravel().tolist()


def _tiles(thumbnails: Any) -> dict[str, Any]:
    """All thumbnails in one JPEG, row by row."""
    from PIL import Image

    thumbnails = np.asarray(thumbnails)
    n, size = thumbnails.shape[:2]
    if thumbnails.dtype != np.uint8 or thumbnails.shape[1:] != (size, size, 3):
        raise ValueError(f"thumbnails must be uint8 of shape (n, s, s, 3), got {thumbnails.dtype} {thumbnails.shape}")
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * columns, size, size, 3), np.uint8)
    sheet[:n] = thumbnails
    sheet = sheet.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "jpeg", quality=80)
    address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"address": address, "columns": columns, "size": size}
