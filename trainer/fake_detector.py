"""How MLflow loads an exported run; this file travels inside the MLflow model and stands on timm alone.

MLflow imports it and calls ``_load_pyfunc`` (its ``loader_module`` form): nothing is unpickled, the weights are
safetensors. Needed where it is loaded: timm, torch, pandas and Pillow.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

BATCH = 64


class FakeDetector:
    """Probability that a face is a forgery, by a folder of ``trainer.export``."""

    def __init__(self, folder: str) -> None:
        import timm
        import torch
        from timm.data import create_transform, resolve_model_data_config

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(self.device)
        self.transform = create_transform(**resolve_model_data_config(self.model), is_training=False)

    def predict(self, faces: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """``faces``: a column ``image`` with the bytes of image files, or ``path`` with their names, or both, of which
        each row then has one. Returns the column ``fake_probability``; ValueError for a row that has neither."""
        import pandas as pd
        import torch

        found: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(faces), BATCH):
                rows = faces.iloc[start : start + BATCH].to_dict("records")
                pixels = torch.stack([self.transform(read(row)) for row in rows]).to(self.device)
                found += self.model(pixels).squeeze(-1).double().sigmoid().tolist()
        return pd.DataFrame({"fake_probability": found}, index=faces.index)


def read(row: dict[str, Any]) -> Image:
    from PIL import Image

    data, path = row.get("image"), row.get("path")
    if isinstance(data, (bytes, bytearray)):
        return Image.open(io.BytesIO(data)).convert("RGB")
    if isinstance(path, str):
        return Image.open(path).convert("RGB")
    raise ValueError("give each face as bytes in the column 'image' or as a file name in the column 'path'")


def _load_pyfunc(folder: str) -> FakeDetector:
    return FakeDetector(folder)
