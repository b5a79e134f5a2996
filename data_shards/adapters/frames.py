"""Folders of face crops, one per video: what every video dataset becomes before it is packed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.command import InputError
from data_shards.faces import FORMATS


def videos(root: Path, below: str) -> Iterator[tuple[str, list[str]]]:
    """(video, its images relative to ``root``) of ``root/below/VIDEO/*``, sorted; InputError if there is none."""
    folder = root / below
    if not folder.is_dir():
        raise InputError(f"there is no {folder}; extract the faces of each video into {below}/VIDEO/ first")
    found = False
    for name in sorted(os.listdir(folder)):
        if (folder / name).is_dir():
            images = [file for file in os.listdir(folder / name) if os.path.splitext(file)[1].lower() in FORMATS]
            found = found or bool(images)
            yield name, [f"{below}/{name}/{image}" for image in sorted(images)]
    if not found:
        raise InputError(f"{folder} holds no folder with images; extract the faces of each video into {below}/VIDEO/")


def read_json(file: Path, kind: type) -> Any:
    """Content of a JSON file, an object (dict) or array (list); InputError if it is not."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, kind):
        raise InputError(f"{file} holds a JSON {type(content).__name__}, not a {kind.__name__}")
    return content
