"""Calibration by controlled forgeries: ``python -m jobs.dose backbone=NAME shards=SHARD_SET``.

How each separability score of one backbone answers to the severity of forgeries, and the least severity that it tells.
The shard set is packed from a folder of ``python -m data_shards.forgeries``, which has the column ``severity``. Run it
for each backbone of an experiment with ``out=RUNS/NAME/dose/BACKBONE.json``, with ``initialisation=random`` and
``backbone='pixel statistics'`` for the controls, and ``python -m jobs.results`` compares them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_shards.command import InputError, run
from data_shards.files import write_json
from data_shards.manifest import ShardSet
from jobs import pixels
from jobs.experiment import Backbone
from trainer.card import get_card

if TYPE_CHECKING:
    from evaluation.dose import DoseResponse


@dataclass
class Dose:
    """Dose-response curves of one backbone over the severity of controlled forgeries."""

    backbone: str
    """Name of a backbone card; or ``pixel statistics``, the control that looks at no face."""
    shards: Path
    """Shard set whose index has the column ``severity``."""
    out: Path
    """JSON file for the curves; their figure lies beside it, as PNG and PDF."""
    features: Path = Path("runs/features")
    """Folder for the features file."""
    initialisation: Literal["pretrained", "random"] = "pretrained"
    replicates: int = 1000
    """Bootstrap replicates behind every interval, and permutations at severity 0."""
    cards: Path | None = None
    """YAML file with backbone cards of your own."""
    weights_dir: Path | None = None
    """Folder with local weights."""
    device: str = "cpu"
    """Where pairwise distances are computed: cpu, or a torch device such as cuda."""
    chunk: int = 0
    """Distances held at a time, which bounds memory; 0: those of 256 samples, and at least 4 million on a CPU."""


def dose(config: Dose) -> Path:
    """Write the curves of every method and score to ``config.out``, and beside it their figure as PNG and PDF."""
    shards = ShardSet.open(config.shards)
    if "severity" not in shards.column_names:
        raise InputError(f"{config.shards} has no column 'severity'; pack a folder of python -m data_shards.forgeries")
    from evaluation.arrays import Compute
    from evaluation.curves import dose_response as figure_of
    from evaluation.dose import dose_curves, least_severity
    from trainer.features import read_features

    path = _features(config, shards)
    data = read_features(path)
    severity = np.asarray(shards.column("severity"), dtype=np.float64)
    arrays = data.features, data.label, data.group, data.method, severity
    try:
        found = dose_curves(*arrays, replicates=config.replicates, compute=Compute(config.device, config.chunk))
    except ValueError as error:
        raise InputError(f"{config.shards}: {error}") from None
    curves = {method: [curve.to_dict() for curve in each] for method, each in found.items()}
    initialisation = "pretrained" if config.backbone == pixels.LABEL else config.initialisation
    backbone = Backbone(config.backbone, initialisation).label
    content = {"backbone": backbone, "features": path.name, "replicates": config.replicates, "curves": curves}
    write_json(config.out, content)
    for suffix in (".png", ".pdf"):
        figure_of(found).savefig(config.out.with_suffix(suffix), dpi=160)
    for method, each in found.items():
        for curve in each:
            values = "  ".join(
                f"{s:g}: {score.value:.3f}" for s, score in zip(curve.severities, curve.scores, strict=True)
            )
            null = "" if np.isnan(curve.p) else f"  p at 0: {curve.p:.2g}"
            null += "" if curve.null_holds else "  severity 0 is NOT within chance"
            print(f"{method}  {curve.name}  {values}  least severity told: {least_severity(curve)}{null}")
    return config.out


def _features(config: Dose, shards: ShardSet) -> Path:
    """The features file, computed if it is not there."""
    if config.backbone == pixels.LABEL:
        return pixels.pixel_features(shards, config.features)
    from trainer.features import extract

    return extract(
        get_card(config.backbone, config.cards),
        shards,
        config.features,
        initialisation=config.initialisation,
        weights_dir=config.weights_dir,
    )


def read(folder: Path) -> dict[str, dict[str, list[DoseResponse]]]:
    """Backbone → method → curves of the files of a folder."""
    from evaluation.dose import DoseResponse

    found = {}
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        found[values["backbone"]] = {
            method: [DoseResponse.from_dict(curve) for curve in curves] for method, curves in values["curves"].items()
        }
    return found


def main(config: Dose) -> None:
    print(dose(config))


if __name__ == "__main__":
    run(Dose, main)
