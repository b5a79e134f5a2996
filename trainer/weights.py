"""Weights of a backbone: found, verified, read, converted once, and cached as safetensors.

Nothing downloaded is installed, imported or unpickled with code: wheels are read as archives, checkpoints with
``weights_only=True``, ONNX files as data. A missing weight raises InputError; nothing falls back to random weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data_shards.command import InputError
from data_shards.files import atomic, digest, sha256_file
from trainer.card import ONNX, BackboneCard, Package, Source

CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class Located:
    """A verified file on this machine, and how to read it."""

    path: Path
    source: Source
    origin: str
    """Where it came from, in words."""


def cache_folder() -> Path:
    """``$MODEL_SEPARABILITY_CACHE``, or ``~/.cache/model-separability``."""
    folder = os.environ.get("MODEL_SEPARABILITY_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "model-separability"


def locate(card: BackboneCard, weights_dir: str | Path | None = None) -> Located | None:
    """The file with a card's weights: the one in ``weights_dir`` if that has one for the card's name, else the card's
    own source, downloaded if need be. None: the weights are timm's own and timm fetches them (``weights.hub``).

    ``weights_dir`` holds NAME.safetensors files, and optionally ``weights.json``: a list of objects with ``name`` and
    optionally ``num_classes`` (outputs of the classifier in the file; else the card's) and ``sha256``."""
    local = _from_folder(card, Path(weights_dir)) if weights_dir else None
    if local:
        return local
    source, kind = card.weights, card.weights.kind()
    if kind == "hub":
        return None
    if kind == "package":
        package = source.package
        return Located(package_file(package, card.name), source, f"PyPI {package.name}=={package.version}")
    if kind == "hub_file":
        return Located(_hub_file(card), source, f"hub {source.hub_file.repo}/{source.hub_file.filename}")
    path = Path(source.file)
    if weights_dir and (Path(weights_dir) / path).exists():
        path = Path(weights_dir) / path
    if not path.is_file():
        raise missing(card, f"there is no file {path}")
    _verify(path, source.sha256, card.name)
    return Located(path, source, f"file {path.name}")


def load_tensors(located: Located, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The state dict in a file under the architecture's names, in float32. ``shapes`` are the architecture's own, used
    by ``match: order``. What had to be converted is kept in the cache, under the file's digest and the rules."""
    source = located.source
    if located.path.suffix == ".safetensors" and not (source.strip or source.rename or source.match == "order"):
        return _as_float32(_read(located.path, source))
    rules = {key: getattr(source, key) for key in ("inner", "strip", "rename", "match", "num_classes")}
    name = f"{sha256_file(located.path)[:16]}-{digest([rules, {k: list(v) for k, v in shapes.items()}])[:8]}"
    cached = cache_folder() / "converted" / f"{name}.safetensors"
    if not cached.exists():
        tensors = convert(_read(located.path, source), source, shapes)
        from safetensors.torch import save_file

        with atomic(cached) as temporary:
            save_file({key: value.contiguous().clone() for key, value in tensors.items()}, temporary)
    return _as_float32(_read(cached, source))


def convert(tensors: dict[str, Tensor], source: Source, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Apply a card's ``strip``, ``rename`` and ``match`` to the tensors of a file."""
    if source.strip:
        tensors = {k.removeprefix(source.strip): v for k, v in tensors.items() if k.startswith(source.strip)}
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        for pattern, replacement in source.rename:
            key = re.sub(pattern, replacement, key)
        target, _, part = key.partition("#")
        if part:
            parts.setdefault(target, {})[int(part)] = value
        elif target:
            renamed[target] = value
    for target, pieces in parts.items():
        ordered = [pieces[index] for index in sorted(pieces)]
        pairs = zip(ordered[0].shape, ordered[-1].shape, strict=True)
        differing = [dimension for dimension, (first, last) in enumerate(pairs) if first != last]
        renamed[target] = torch.cat(ordered, dim=differing[0] if differing else 0)
    return _by_order(renamed, shapes) if source.match == "order" else renamed


def state_digest(state: dict[str, Tensor]) -> str:
    """Hex SHA-256 of a state dict: names, types, shapes and values, in the order of names."""
    result = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        result.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        result.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def package_file(package: Package, card_name: str) -> Path:
    """The file of a wheel in the cache. The first call downloads the wheel with pip, which neither builds, installs
    nor runs anything of it, takes the one file out and checks its digest."""
    from filelock import FileLock

    suffix = Path(package.file).suffix
    target = cache_folder() / "packages" / f"{package.name}-{package.version}-{package.sha256[:16]}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # ranks of one launch wait for the first one
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                wheel = _download_wheel(package, Path(folder), card_name)
                with atomic(target) as temporary:
                    _extract(wheel, package.file, temporary)
                    _verify(temporary, package.sha256, card_name, shown=f"{package.file} in {wheel.name}")
    return target


def missing(card: BackboneCard, why: str) -> InputError:
    """The error for weights that cannot be had, with the ways to get them."""
    kind = card.weights.kind()
    ways = {
        "hub": f"make huggingface.co reachable, or `hf download {card.weights.hub}` where it is and copy the cache",
        "hub_file": "make huggingface.co reachable, or `hf download` the file where it is and copy the cache",
        "package": "make a package registry reachable for `pip download`",
        "file": "put the file there",
    }
    why = " ".join(why.split())[:300]
    return InputError(
        f"no weights for backbone {card.name!r}: {why}. Either {ways[kind]}; or put {card.name}.safetensors into a "
        "folder and give it as weights_dir; or ask for a control with initialisation=random"
    )


def _from_folder(card: BackboneCard, folder: Path) -> Located | None:
    if not folder.is_dir():
        raise InputError(f"weights_dir {folder} is not a folder")
    path, listing, entry = folder / f"{card.name}.safetensors", folder / "weights.json", {}
    if listing.exists():
        try:
            entries = {item["name"]: item for item in json.loads(listing.read_text(encoding="utf-8"))}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{listing} must be a JSON list of objects with a name: {error!r}") from None
        entry = entries.get(card.name, {})
    if not path.exists():
        if entry:
            raise InputError(f"{listing} lists {card.name}, but {path} is not there")
        return None
    if card.architecture == ONNX:
        raise InputError(f"{path}: card {card.name} is an ONNX graph; give the .onnx file in a card of your own")
    _verify(path, entry.get("sha256", ""), card.name)
    classes = int(entry.get("num_classes", card.weights.num_classes))
    plain = replace(Source(file=path.name), num_classes=classes)
    return Located(path, plain, f"file {path.name}")


def _verify(path: Path, expected: str, card_name: str, shown: str = "") -> None:
    if expected and (found := sha256_file(path)) != expected:
        raise InputError(
            f"weights of {card_name}: {shown or path} has sha256 {found[:16]}…, expected {expected[:16]}…; "
            "the file is damaged or another one: get it again"
        )


def _download_wheel(package: Package, folder: Path, card_name: str) -> Path:
    print(f"{card_name}: downloading {package.name}=={package.version} (read, not installed)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{package.name}=={package.version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise InputError(
            f"no weights for backbone {card_name!r}: pip could not download {package.name}=={package.version} "
            f"({errors[-1][:200] if errors else 'no wheel came'}). Make a package registry reachable, or put "
            f"{card_name}.safetensors into a folder and give it as weights_dir"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise InputError(f"{wheel.name} has no file {member}; the card names another version's file")
        with archive.open(member) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out)


def _hub_file(card: BackboneCard) -> Path:
    from huggingface_hub import hf_hub_download

    wanted = card.weights.hub_file
    try:
        path = Path(hf_hub_download(wanted.repo, wanted.filename))
    except Exception as error:  # the hub's client raises errors of several HTTP libraries, without a common base
        raise missing(card, f"{wanted.repo}/{wanted.filename} could not be had from the hub ({error})") from error
    _verify(path, wanted.sha256, card.name)
    return path


def _read(path: Path, source: Source) -> dict[str, Tensor]:
    import pickle

    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".onnx":
            from trainer.onnx_graph import read_tensors

            return read_tensors(path)
        if path.suffix in CHECKPOINTS:
            return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path, source.inner)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{path} cannot be read as weights ({reason}); get it again or delete it") from None
    raise InputError(f"{path}: weights must be .safetensors, .onnx or one of {', '.join(CHECKPOINTS)}")


def _state_dict(loaded: object, path: Path, inner: str) -> dict[str, Tensor]:
    if inner and isinstance(loaded, dict):
        if inner not in loaded:
            raise InputError(f"{path} has no entry {inner!r} (weights.inner); it has {list(loaded)[:5]}")
        loaded = loaded[inner]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path} is not a state dict; name the entry that holds it as weights.inner")
    return dict(loaded)


def _by_order(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Name tensors after the architecture's, one by one. Counters of batch norms are skipped: they steer nothing."""
    found = [(key, value) for key, value in tensors.items() if not key.endswith("num_batches_tracked")]
    wanted = [key for key in shapes if not key.endswith("num_batches_tracked")]
    if len(found) != len(wanted):
        raise InputError(f"match: order needs {len(wanted)} tensors of the architecture, the file has {len(found)}")
    result = {key: torch.zeros((), dtype=torch.int64) for key in shapes if key.endswith("num_batches_tracked")}
    for key, (name, value) in zip(wanted, found, strict=True):
        if tuple(value.shape) != shapes[key]:
            raise InputError(f"match: order: {name} {tuple(value.shape)} does not fit {key} {shapes[key]}")
        result[key] = value
    return result


def _as_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
