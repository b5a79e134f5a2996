"""Frozen features of one backbone on one shard set, as a file that names what determined it.

python -m trainer.features backbone=dinov2_vits14 shards=data/train out=features
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_shards.command import InputError, run
from data_shards.files import atomic, digest
from data_shards.manifest import ShardSet
from trainer.card import BackboneCard, card_fields, determining, get_card
from trainer.parts import Parts

if TYPE_CHECKING:
    from trainer.backbones import Backbone

SCHEMA = 1
"""Raised when the same inputs would give other values than an earlier version gave."""
TEXT_COLUMNS = ("group", "method", "dataset")


@dataclass(frozen=True)
class Features:
    """Row i belongs to sample i of the shard set."""

    features: np.ndarray
    """float32 (n, d)."""
    index: np.ndarray
    """int64 (n,), 0 … n-1."""
    label: np.ndarray
    """uint8 (n,), 0 = real, 1 = fake."""
    group: np.ndarray
    """object (n,) of str; likewise method and dataset."""
    method: np.ndarray
    dataset: np.ndarray
    provenance: dict[str, Any]


@dataclass
class FeaturesConfig:
    """Extract the frozen features of one backbone on one shard set. What is there already is not computed again."""

    backbone: str
    """Name of a backbone card."""
    shards: Path
    """Folder of a shard set (one split)."""
    out: Path = Path("features")
    """Folder for the features file."""
    initialisation: Literal["pretrained", "random"] = "pretrained"
    """random: a control with the same architecture and untrained weights."""
    seed: int = 0
    """Of the random weights."""
    cards: Path | None = None
    """YAML file with backbone cards of your own."""
    weights_dir: Path | None = None
    """Folder with NAME.safetensors files, used before the cards' own sources."""
    batch_size: int = 32
    threads: int = 2
    """Threads that read and decode images."""
    device: str = "auto"
    """auto (GPU if there is one), cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: bfloat16 autocast. Features are stored in float32 either way."""


def extract(
    card: BackboneCard,
    shards: ShardSet,
    out: str | Path,
    *,
    initialisation: str = "pretrained",
    seed: int = 0,
    batch_size: int = 32,
    threads: int = 2,
    device: str = "auto",
    precision: str = "fp32",
    weights_dir: str | Path | None = None,
    backbone: Backbone | None = None,
) -> Path:
    """The features file of a card on a shard set in the folder ``out``, computed if it is not there.

    Returns ``out/BACKBONE--SHARDS--DIGEST12.parquet``. The digest is of what determines the values: the card's
    architecture, layer, input size and normalisation, the digests of the weights and of the shard set, the precision
    and the decoder; not of batch size, threads or device, which change them by rounding alone. ``backbone``: the one
    that the card and these options give, if it is at hand.
    """
    from trainer.backbones import create_backbone  # torch: not for --help

    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision must be fp32 or bf16, not {precision!r}")
    if backbone is None:
        backbone = create_backbone(card, initialisation=initialisation, seed=seed, weights_dir=weights_dir)
    determining = _determining(backbone, shards, initialisation, seed, precision)
    name = f"{card.name}-random-s{seed}" if initialisation == "random" else card.name
    identity = digest(determining)[:12]
    for existing in sorted(Path(out).glob(f"{name}--*--{identity}.parquet")):
        read_features(existing)  # what is there must be whole
        return existing
    path = Path(out) / f"{name}--{shards.path.resolve().name}--{identity}.parquet"
    chosen = _device(device)
    parts = Parts(path)
    values = _compute(backbone, shards, batch_size, threads, chosen, precision, parts, title=f"features of {name}")
    _write(path, values, shards, _provenance(backbone, shards, determining, chosen))
    parts.discard()
    return path


def extract_layers(
    card: BackboneCard,
    shards: ShardSet,
    out: str | Path,
    *,
    initialisation: str = "pretrained",
    seed: int = 0,
    batch_size: int = 32,
    threads: int = 2,
    device: str = "auto",
    weights_dir: str | Path | None = None,
) -> list[Path]:
    """Like :func:`extract`, of every layer from stem to head (:class:`trainer.backbones.Layers`), a file for each; all
    from one pass over the images. The last are the card's own features."""
    from trainer.backbones import Layers, create_backbone  # torch: not for --help

    layers = Layers(create_backbone(card, initialisation=initialisation, seed=seed, weights_dir=weights_dir))
    name = f"{card.name}-random-s{seed}" if initialisation == "random" else card.name
    count, determining, paths = len(layers.widths), [], []
    for number in range(1, count + 1):
        which = {"layer": f"{number} of {count}, {card.layer} last"}
        determining.append({**_determining(layers.backbone, shards, initialisation, seed, "fp32"), **which})
        identity = digest(determining[-1])[:12]
        paths.append(Path(out) / f"{name}-layer{number:02d}--{shards.path.resolve().name}--{identity}.parquet")
    if not all(path.is_file() for path in paths):
        chosen = _device(device)
        parts = Parts(paths[-1])
        values = _compute(layers, shards, batch_size, threads, chosen, "fp32", parts, title=f"layers of {name}")
        columns = np.split(values, np.cumsum(layers.widths)[:-1], axis=1)
        for path, own, inputs in zip(paths, columns, determining, strict=True):
            provenance = _provenance(layers.backbone, shards, inputs, chosen)
            _write(path, np.ascontiguousarray(own), shards, {**provenance, "num_features": own.shape[1]})
        parts.discard()
    return paths


def read_features(path: str | Path) -> Features:
    """A features file, whole: every index 0 … n-1 exactly once, every value finite; InputError otherwise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        provenance = json.loads(table.schema.metadata[b"provenance"])
        columns = {name: table.column(name).combine_chunks() for name in ("features", "index", "label", *TEXT_COLUMNS)}
    except FileNotFoundError:
        raise InputError(f"there is no features file {path}; make it with python -m trainer.features") from None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a features file ({error}); delete it and extract again") from None
    vectors = columns.pop("features")
    features = vectors.values.to_numpy(zero_copy_only=False).reshape(len(vectors), vectors.type.list_size)
    arrays = {name: column.to_numpy(zero_copy_only=False) for name, column in columns.items()}
    problem = _problem(features, arrays["index"], provenance["samples"])
    if problem:
        raise InputError(f"{path}: {problem}; delete it and extract again")
    return Features(features=features, **arrays, provenance=provenance)


def _compute(
    backbone: Any,
    shards: ShardSet,
    batch_size: int,
    threads: int,
    device: Any,
    precision: str,
    parts: Parts,
    title: str,
) -> np.ndarray:
    """float32 (n, d) in the order of the index, on from what ``parts`` has; coverage is checked, not assumed."""
    import torch
    from tqdm import tqdm

    from data_shards.loader import evaluation_batches
    from trainer.preprocess import normalize

    card, n = backbone.card, shards.samples
    values = np.full((n, backbone.num_features), np.nan, dtype=np.float32)
    done = parts.restore(values)
    seen = [np.arange(done)]
    backbone = backbone.eval().to(device, memory_format=torch.channels_last)
    batches = evaluation_batches(
        shards,
        batch_size=batch_size,
        image_size=card.input_size,
        threads=threads,
        pin_memory=device.type == "cuda",
        first=done,
    )
    quiet = not sys.stderr.isatty()
    if quiet:
        on = f", {done} of them done before" if done else ""
        print(f"{title}: {n} images of {shards.path.name} on {device}{on}", file=sys.stderr)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        tqdm(total=n, initial=done, desc=title, unit="img", disable=quiet) as progress,
    ):
        try:
            for batch in batches:
                images = batch.images.to(device, non_blocking=True)
                output = backbone(normalize(images, card, memory_format=torch.channels_last))
                index = batch.index.numpy()
                values[index] = output.float().cpu().numpy()
                seen.append(index)
                done += len(index)
                parts.keep(values, done)
                progress.update(len(index))
        except (KeyboardInterrupt, SystemExit):  # asked to stop
            parts.keep(values, done, now=True)
            raise
    problem = _problem(values, np.sort(np.concatenate(seen)), n)
    if problem:
        parts.discard()
        raise InputError(f"{title}: {problem}; nothing was written")
    return values


def _problem(features: np.ndarray, index: np.ndarray, samples: int) -> str | None:
    """What is wrong with features that should be complete, in the order of ``index`` and finite."""
    if len(index) != samples or len(features) != samples or not np.array_equal(index, np.arange(samples)):
        return f"the features do not cover every one of the {samples} samples exactly once"
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        return f"{np.count_nonzero(~finite)} samples have features that are not finite, the first {index[~finite][0]}"
    return None


def _determining(backbone: Any, shards: ShardSet, initialisation: str, seed: int, precision: str) -> dict[str, Any]:
    from importlib.metadata import version

    card = backbone.card
    return {
        "schema": SCHEMA,
        "backbone": card.name,
        **determining(card),
        "initialisation": initialisation,
        "seed": seed if initialisation == "random" else None,
        "weights_sha256": backbone.weights_sha256,
        "shards_digest": shards.digest,
        "precision": precision,
        "decoder": f"simplejpeg {version('simplejpeg')}",
    }


def _provenance(backbone: Any, shards: ShardSet, determining: dict[str, Any], device: Any) -> dict[str, Any]:
    from trainer.provenance import versions

    return {
        **determining,
        "card": card_fields(backbone.card),
        "weights_origin": backbone.weights_origin,
        "num_features": backbone.num_features,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "split": shards.split,
        "samples": shards.samples,
        "device": str(device),
        "code": versions(),
    }


def _write(path: Path, values: np.ndarray, shards: ShardSet, provenance: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, d = values.shape
    columns = {
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), d),
        "index": pa.array(np.arange(n, dtype=np.int64)),
        "label": pa.array(shards.labels),
        **{name: pa.array(shards.column(name), pa.string()) for name in TEXT_COLUMNS},
    }
    table = pa.table(columns).replace_schema_metadata({"provenance": json.dumps(provenance, sort_keys=True)})
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=list(TEXT_COLUMNS))
    if not sys.stderr.isatty():
        print(f"wrote {path} ({n} x {d})", file=sys.stderr)


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); give auto, cpu or cuda") from None
    return device


def features_command(config: FeaturesConfig) -> None:
    path = extract(
        get_card(config.backbone, config.cards),
        ShardSet.open(config.shards),
        config.out,
        initialisation=config.initialisation,
        seed=config.seed,
        batch_size=config.batch_size,
        threads=config.threads,
        device=config.device,
        precision=config.precision,
        weights_dir=config.weights_dir,
    )
    print(path)


if __name__ == "__main__":
    run(FeaturesConfig, features_command)
