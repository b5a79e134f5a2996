"""The result of a finished run, and whether it still belongs to what lies there now.

A run's name holds where its data lie and what its card is called, not what these contain. So what a result says it was
made of is compared with them before it is used again. What an older result does not say, and data that are gone or not
on this machine, cannot be compared. Without any heavy import: whether a run is finished is asked thousands of times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_shards.command import InputError
from trainer.card import BackboneCard, determining, load_cards
from trainer.config import FinetuneConfig


def read_result(config: FinetuneConfig, weights_sha256: str | None = None) -> dict[str, Any] | None:
    """The result of a finished run; None while it is not. InputError where data or card are no longer those that it was
    made of, or the initial weights, if these are at hand (``weights_sha256``)."""
    try:
        result = json.loads((config.directory / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    for change in changes(config, result, weights_sha256):
        raise InputError(
            f"{config.directory} is finished, but {change} since: restore it, delete the run's folder, or train under "
            "another name (experiment=NAME)"
        )
    return result


def changes(config: FinetuneConfig, result: dict[str, Any], weights_sha256: str | None = None) -> Iterator[str]:
    """What ``result`` was made of and is another now, in words."""
    data = result.get("data", {})
    yield from _changes(
        data, {name: manifest_digest(getattr(config, name)) for name in ("train", "validation")}, "data"
    )
    yield from _changes(result.get("weights", {}), {"sha256": weights_sha256}, "initial weights")
    card = _card(config) if "card" in result else None
    if card is not None:
        yield from card_changes(card, result)


def card_changes(card: BackboneCard, result: dict[str, Any]) -> Iterator[str]:
    """What the card said when the run was trained and says no longer, in words."""
    yield from _changes(result.get("card", {}), determining(card), f"card {card.name}")


def _changes(was: dict[str, Any], now: dict[str, Any], where: str) -> Iterator[str]:
    for name, value in now.items():
        if value is not None and was.get(name, value) != value:
            yield f"{name} of its {where} has changed from {was[name]} to {value}"


def _card(config: FinetuneConfig) -> BackboneCard | None:
    try:
        return load_cards(config.cards).get(config.backbone)
    except InputError:  # the user's file of cards is gone
        return None


def manifest_digest(path: str | Path) -> str | None:
    """Digest of a shard set, as its manifest has it; None if there is none on this machine."""
    file = Path(path) if Path(path).name == "manifest.json" else Path(path) / "manifest.json"
    try:
        found = file.stat()
    except OSError:
        return None
    return _digest(file, found.st_mtime_ns, found.st_size)


@lru_cache
def _digest(file: Path, *_version: int) -> str:
    return json.loads(file.read_text(encoding="utf-8"))["digest"]
