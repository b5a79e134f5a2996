"""Score shard sets with a finished run: ``python -m trainer.predict run=RUN shards='{test: DIR, unseen: DIR}'``; or a
folder of face images: ``python -m trainer.predict run=RUN images=FOLDER out=scores.csv``.

The first writes RUN/scores/NAME.parquet (``NAME-last`` for the last instead of the selected checkpoint): ``index,
label, group, method, dataset, [video,] [further columns,] logit``. Scores that are there, of the same checkpoint and
data, are left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_shards.command import InputError, from_dict, read_yaml, run
from data_shards.files import atomic, digest, sha256_file

if TYPE_CHECKING:
    import numpy as np
    import torch

    from data_shards.manifest import ShardSet
    from trainer.card import BackboneCard
    from trainer.classifier import Classifier

Checkpoint = Literal["best", "last"]


@dataclass
class PredictConfig:
    """Score shard sets, or a folder of face images, with a finished fine-tuning run."""

    run: Path
    """Run directory."""
    shards: dict[str, Path] = field(default_factory=dict)
    """Shard sets by the name of their scores."""
    images: Path | None = None
    """Folder of face images, with those of its subfolders."""
    out: Path | None = None
    """With images: the CSV file (path, logit, fake_probability) to write."""
    on_bad: Literal["raise", "skip"] = "raise"
    """With images: whether one that cannot be read ends the command, or is named and left out."""
    checkpoint: Checkpoint = "best"
    columns: list[str] = field(default_factory=list)
    """With shards: further columns of the face tables, which the scores shall have too."""
    batch_size: int = 64
    threads: int = 2


def score(
    run: Path,
    shards: dict[str, Path],
    checkpoint: Checkpoint = "best",
    *,
    columns: Sequence[str] = (),
    batch_size: int = 64,
    threads: int = 2,
    features: Callable[[Path], np.ndarray] | None = None,
    open_shards: Callable[[Path], ShardSet] | None = None,
) -> dict[str, Path]:
    """Write what is missing of the scores; returns the file of each set.

    Each sample is scored exactly once, without augmentation, in float32 on the first GPU or the CPU; where the last
    checkpoint is the selected one, scores of the one are copied for the other. ``features``: the run's frozen backbone
    on a shard set, float32 (n, d), if that is at hand; then the head alone is computed. ``open_shards`` opens the sets,
    and may put their decoded pictures beside them. ``columns``: see PredictConfig; a set without one is left without
    it. InputError if the run is not finished, a set is none, or no set has a column.
    """
    from data_shards.manifest import ShardSet

    run = Path(run)
    weights = check_finished(run, checkpoint)
    for name in shards:
        if not name or Path(name).name != name:
            raise InputError(f"shards: {name!r} must be a plain file name")
    other: Checkpoint = "last" if checkpoint == "best" else "best"
    files, twins = ({name: _scores_file(run, name, each) for name in shards} for each in (checkpoint, other))
    weights_sha256 = sha256_file(weights)
    missing: dict[str, tuple[ShardSet, dict[str, Any]]] = {}
    sets = {name: (open_shards or ShardSet.open)(path) for name, path in shards.items()}
    for column in columns:
        if not any(column in opened.column_names for opened in sets.values()):
            raise InputError(f"no shard set has a column {column!r}; pack it with the faces, or leave it out")
    for name, opened in sets.items():
        provenance = {"checkpoint": checkpoint, "checkpoint_sha256": weights_sha256, "data": opened.digest}
        if opened.videos is not None:  # a carried column, which the digest of the set does not name
            provenance["videos"] = digest(opened.videos.tolist())
        if carried := [column for column in columns if column in opened.column_names]:
            provenance["columns"] = digest({column: opened.column(column).tolist() for column in carried})
        if read_provenance(files[name]) == provenance:
            continue
        if read_provenance(twins[name]) == {**provenance, "checkpoint": other}:
            _copy(twins[name], files[name], provenance)
        else:
            missing[name] = opened, provenance
    if missing and features is None:
        model, card, device = load_run(run, checkpoint)
    elif missing:
        _read_run(run)
    for name, (opened, provenance) in missing.items():
        if features is None:
            logits = _logits(model, card, device, opened, batch_size, threads, name)
        else:
            logits = _head_logits(weights, features(shards[name]))
        _write(files[name], opened, logits, provenance, columns)
    return files


def _scores_file(run: Path, name: str, checkpoint: Checkpoint) -> Path:
    return run / "scores" / f"{name}{'' if checkpoint == 'best' else '-last'}.parquet"


def check_finished(run: Path, checkpoint: Checkpoint) -> Path:
    """The checkpoint's file; InputError unless the run is finished."""
    weights = run / f"{checkpoint}.safetensors"
    if not (run / "result.json").is_file() or not weights.is_file():
        raise InputError(f"{run} is not a finished run; run its fine-tuning to the end first")
    return weights


def load_run(run: Path, checkpoint: Checkpoint = "best") -> tuple[Classifier, BackboneCard, torch.device]:
    """The model of a finished run in evaluation mode, on the first GPU or the CPU, with its card."""
    import torch
    from safetensors.torch import load_file

    from trainer.backbones import create_backbone
    from trainer.classifier import Classifier
    from trainer.config import FinetuneConfig

    values, card, result = _read_run(run)
    config = from_dict(FinetuneConfig, values)
    tensors = load_file(run / f"{checkpoint}.safetensors")
    head_alone = all(name.startswith("head.") for name in tensors)  # trained on features in memory
    # Any other checkpoint holds all weights: the pre-trained ones need not be fetched.
    initialisation = config.initialisation if head_alone else "random"
    backbone = create_backbone(card, initialisation=initialisation, seed=config.seed, weights_dir=config.weights_dir)
    if head_alone:
        trained_on = result["weights"]["sha256"]
        if backbone.weights_sha256 != trained_on:
            raise InputError(
                f"{run} has a head for weights {trained_on}, and card {card.name} gives {backbone.weights_sha256}"
            )
        tensors |= {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    model = Classifier(backbone, seed=config.seed)
    model.load_state_dict(tensors)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval().requires_grad_(False).to(device), card, device


def _read_run(run: Path) -> tuple[dict[str, Any], BackboneCard, dict[str, Any]]:
    """Config (plain), card and result of a finished run; InputError where the card is not the one that it was trained
    with."""
    from trainer.card import get_card
    from trainer.finished import card_changes

    config = read_yaml(run / "config.yaml")
    card = get_card(config["backbone"], config.get("cards"))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    for change in card_changes(card, result):
        raise InputError(f"{run}: {change} since it was trained; restore the card")
    return config, card, result


def read_provenance(file: Path) -> dict[str, Any] | None:
    """What a scores file was made from; None if there is none."""
    import pyarrow.parquet as pq

    if not file.is_file():
        return None
    return json.loads((pq.read_schema(file).metadata or {}).get(b"provenance", b"null"))


def _logits(
    model: Classifier,
    card: BackboneCard,
    device: torch.device,
    shards: ShardSet,
    batch_size: int,
    threads: int,
    name: str,
) -> torch.Tensor:
    """Logits, float64 (n,), in the order of the index."""
    import torch
    from tqdm import tqdm

    from data_shards.loader import evaluation_batches
    from trainer.preprocess import normalize
    from trainer.validation import merge_by_index

    parts = []
    terminal = sys.stderr.isatty()
    model = model.to(memory_format=torch.channels_last)  # twice as fast for most convolutional networks
    how = {"batch_size": batch_size, "image_size": card.input_size, "threads": threads}
    batches = evaluation_batches(shards, pin_memory=device.type == "cuda", **how)
    with tqdm(total=len(shards), desc=f"score {name}", unit="image", disable=not terminal) as bar, torch.no_grad():
        for batch in batches:
            images = batch.images.to(device, non_blocking=True)
            logits = model(normalize(images, card, memory_format=torch.channels_last))
            parts.append((batch.index.numpy(), logits.cpu().numpy()))
            bar.update(len(batch))
    if not terminal:
        print(f"scored {name}: {len(shards)} images", file=sys.stderr, flush=True)
    return merge_by_index(parts, len(shards))


def _head_logits(weights: Path, features: np.ndarray) -> torch.Tensor:
    """Logits, float64 (n,), of the head in a checkpoint for features (n, d)."""
    import torch
    from safetensors import safe_open

    with safe_open(weights, "pt") as opened:
        head = [opened.get_tensor(f"head.{name}") for name in ("weight", "bias")]
    return torch.nn.functional.linear(torch.from_numpy(features), *head).squeeze(-1).double()


def _write(
    file: Path, shards: ShardSet, logits: torch.Tensor, provenance: dict[str, Any], carried: Sequence[str]
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = dict.fromkeys(("group", "method", "dataset", *carried))
    names = [name for name in wanted if name in shards.column_names and name not in ("video", "label")]
    columns = {"index": np.arange(len(shards), dtype=np.int64), "label": shards.labels}
    with pq.ParquetFile(shards.index_path) as index:
        columns |= zip(names, index.read(columns=names).select(names).columns, strict=True)
    if shards.videos is not None:
        columns["video"] = pa.array(shards.videos)
    table = pa.table({**columns, "logit": logits.numpy()})
    with atomic(file) as temporary:
        pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(provenance)}), temporary)


def _copy(scores: Path, file: Path, provenance: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(scores).replace_schema_metadata({"provenance": json.dumps(provenance)})
    with atomic(file) as temporary:
        pq.write_table(table, temporary)


def predict(config: PredictConfig) -> None:
    if bool(config.shards) == (config.images is not None):
        raise InputError("give either shards='{NAME: SHARD_SET}' or images=FOLDER with out=FILE.csv")
    if config.images is not None:
        _predict_folder(config, config.images)
        return
    how = {"columns": config.columns, "batch_size": config.batch_size, "threads": config.threads}
    files = score(config.run, config.shards, config.checkpoint, **how)
    for file in files.values():
        print(file)


def _predict_folder(config: PredictConfig, images: Path) -> None:
    from trainer.score_folder import find_images, score_folder

    if config.out is None:
        raise InputError("images=FOLDER needs out=FILE.csv")
    find_images(images)
    check_finished(config.run, config.checkpoint)
    scored, skipped = score_folder(
        *load_run(config.run, config.checkpoint),
        images,
        config.out,
        on_bad=config.on_bad,
        batch_size=config.batch_size,
        threads=config.threads,
    )
    print(f"{config.out}: {scored} images" + (f", {skipped} could not be read" if skipped else ""))


if __name__ == "__main__":
    run(PredictConfig, predict)
