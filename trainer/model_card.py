"""The model card of an exported run: what it is, what it was measured on, what it may be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_shards.command import read_yaml
from trainer.card import BackboneCard


def model_card(run: Path, result: dict[str, Any], card: BackboneCard, checkpoint: str) -> str:
    """Markdown with the header that the Hugging Face hub reads. ``result`` is the run's result.json."""
    config = read_yaml(run / "config.yaml")
    header = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": "other",
        "license_name": card.licence,
        "tags": ["timm", "image-classification", "deepfake-detection"],
    }
    commit = result["commit"] or "unknown"
    step = result["selected_step"] if checkpoint == "best" else result["steps"]
    return TEMPLATE.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        run=result["run"],
        architecture=card.architecture,
        size=card.input_size,
        backbone=card.name,
        pretext=card.pretext_task,
        initialisation=config["initialisation"],
        origin=result["weights"]["origin"],
        weights=result["weights"]["sha256"],
        licence=card.licence,
        mode=config["mode"],
        epochs=f"{result['epoch']:g}",
        steps=result["steps"],
        batch=config["batch_size"],
        rate=f"{config['learning_rate']:g}",
        seed=config["seed"],
        checkpoint=checkpoint,
        step=step,
        sha256=result["checkpoints"][f"{checkpoint}.safetensors"],
        metrics=_metrics(run, result, checkpoint),
        selection=result["selection"],
        train=result["data"]["train"],
        validation=result["data"]["validation"],
        commit=commit,
        versions=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    )


def _metrics(run: Path, result: dict[str, Any], checkpoint: str) -> str:
    """Table rows of the validation metrics of this checkpoint."""
    from trainer.state import read_metrics

    row = result["selected"]
    if checkpoint == "last":
        row = [row for row in read_metrics(run) if "validation/auc" in row][-1]
    names = {"validation/auc": "AUC", "validation/loss": "cross-entropy, classes weighted as in training"}
    return "\n".join(f"| {label} | {row[name]:.4f} | {row['validation/n']} |" for name, label in names.items())


TEMPLATE = """---
{header}
---
# {run}

Scores a face crop with the logit of "fake": above 0 means that a forgery is more likely than not *at the class balance
and on the kind of data it was trained with*.

```python
import timm, torch
model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
fake_probability = torch.sigmoid(model(transform(face).unsqueeze(0)))  # face: a PIL image, RGB, square
```

## What it is

| | |
|---|---|
| architecture | `{architecture}` of timm, one output, {size} x {size} pixels |
| started from | `{backbone}` ({pretext}), {initialisation}: {origin} |
| initial weights | sha256 `{weights}` |
| learned | mode `{mode}`, {epochs} epochs ({steps} updates of {batch}), peak learning rate {rate}, seed {seed} |
| this checkpoint | `{checkpoint}`, after update {step}, sha256 `{sha256}` |
| made with | commit `{commit}`; {versions} |

## Data and metrics

Training set `{train}`, validation set `{validation}` (digests of their manifests: content, not place).

| validation metric | value | n |
|---|---|---|
{metrics}

The checkpoint was selected on this validation set ({selection}), so that these numbers are too good by nature. Nothing
is said here about a test set, or about data of another source.

## Intended use and limits

For research on forgery detection, and as one signal among others for people who know the data it was trained on. Not
evidence: no decision about a person may rest on it. Detectors of this kind fail on manipulations, cameras, compression
and demographic groups that they were not trained on, often silently; measure it on your own data, per group, first.
The input must be a face crop framed as the training images are. The probability is not calibrated for other shares of
fakes.

## Licence

The weights derive from `{backbone}`: {licence}. The terms of the training data may restrict them further.
"""
