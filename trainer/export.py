"""A finished run as a folder that timm loads: ``python -m trainer.export run=RUN out=FOLDER``.

The folder holds ``model.safetensors``, ``config.json`` (timm's hub form, with the preprocessing) and ``README.md`` (the
model card). ``timm.create_model("local-dir:FOLDER", pretrained=True)`` gives a model with one output, the logit of
"fake"; uploaded to the Hugging Face hub as it is, ``hf-hub:USER/NAME`` does. With ``tracking_uri=STORE`` MLflow gets
the folder as a model that predicts from bytes or paths of images (``trainer/fake_detector.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_shards.command import InputError, read_yaml, run
from data_shards.files import atomic
from trainer.card import ONNX, BackboneCard

if TYPE_CHECKING:
    from torch import nn

    from trainer.classifier import Classifier

POOLING: dict[str, dict[str, Any]] = {
    "pooled": {},
    "token": {"global_pool": "token"},
    "average": {"global_pool": "avg", "fc_norm": False},
}
"""What makes timm's own classifier see the features of a card's layer."""


@dataclass
class ExportConfig:
    """Write a finished run as a folder that timm loads with its preprocessing, with a model card."""

    run: Path
    """Run directory."""
    out: Path
    """Folder to make; it must not exist or be empty."""
    checkpoint: Literal["best", "last"] = "best"
    tracking_uri: str | None = None
    """MLflow store (sqlite:///FILE or http://HOST:PORT) that gets the folder as a model whose predict takes bytes or
    paths of images; null: none."""


def export(run: Path, out: Path, checkpoint: Literal["best", "last"] = "best") -> None:
    """Write the folder, whole or not at all. InputError if the run is not finished, ``out`` holds something, or the
    backbone is not one that timm could build again."""
    from timm.models import save_for_hf

    from trainer.model_card import model_card
    from trainer.predict import check_finished, load_run

    check_finished(run, checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} exists already; give a new folder")
    model, card, _ = load_run(run, checkpoint)
    native = to_timm(model.cpu(), card)
    preprocessing = {
        "input_size": (3, card.input_size, card.input_size),
        "mean": card.mean,
        "std": card.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # a square of the whole picture, as in training
    }
    labels = {"label_names": ["fake"], "label_descriptions": {"fake": "logit of the face being a forgery"}}
    with atomic(out) as temporary:
        save_for_hf(native, str(temporary), safe_serialization=True, data_config=preprocessing, model_config=labels)
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        text = model_card(run, result, card, checkpoint)
        (temporary / "README.md").write_text(text, encoding="utf-8")


def to_timm(model: Classifier, card: BackboneCard) -> nn.Module:
    """The classifier as timm's own model with one output, on the CPU in evaluation mode.

    Checked on random pixels: InputError where timm's classifier does not see the features that ours sees."""
    import torch

    from trainer.backbones import build_timm_model

    if card.architecture == ONNX:
        raise InputError(
            f"card {card.name} is an ONNX graph, which timm cannot build; keep the run directory and score with "
            "python -m trainer.predict, or read its safetensors (names of the graph) yourself"
        )
    mistake = InputError(f"timm's classifier cannot stand on layer={card.layer!r} of {card.architecture}")
    try:
        native = build_timm_model(card, num_classes=1, **POOLING[card.layer])
    except (TypeError, ValueError, AssertionError):  # the architecture has no such pooling
        raise mistake from None
    state = {name.removeprefix("model."): tensor for name, tensor in model.backbone.state_dict().items()}
    classifier = native.get_classifier()
    prefix = next((name for name, module in native.named_modules() if module is classifier), None)
    own = native.state_dict()
    head = {f"{prefix}.{name}": tensor for name, tensor in model.head.state_dict().items()}
    state |= {name: tensor.view(own[name].shape) for name, tensor in head.items() if name in own}
    if set(state) != set(own) or not set(head) <= set(own):
        raise mistake
    native.load_state_dict(state)
    native.eval()
    pixels = torch.rand(2, 3, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.allclose(native(pixels).squeeze(-1), model(pixels), rtol=1e-4, atol=1e-5):
            raise mistake
    return native


def log_to_mlflow(run: Path, out: Path, checkpoint: Literal["best", "last"], tracking_uri: str) -> str:
    """Log an exported folder as an MLflow model into the run's experiment; returns its address there. Predicts the
    column ``fake_probability`` from the columns ``image`` (bytes of image files) or ``path``. InputError if MLflow
    cannot be reached: the same command logs it later."""
    from importlib.metadata import version

    from evaluation.tracking import TrackingError, log_model
    from trainer import fake_detector

    config = read_yaml(run / "config.yaml")
    try:
        return log_model(
            tracking_uri,
            config["experiment"],
            f"{run.name}-{checkpoint}-model",
            out,
            Path(fake_detector.__file__),
            inputs={"image": "binary", "path": "string"},
            outputs={"fake_probability": "double"},
            requirements=[f"{name}=={version(name)}" for name in ("timm", "torch", "torchvision", "pandas", "pillow")],
        )
    except TrackingError as error:
        raise InputError(str(error)) from None


def export_command(config: ExportConfig) -> None:
    if config.tracking_uri is None or not _is_export(config):
        export(config.run, config.out, config.checkpoint)
        print(f"{config.out}: timm.create_model('local-dir:{config.out}', pretrained=True)")
    if config.tracking_uri is not None:
        address = log_to_mlflow(config.run, config.out, config.checkpoint, config.tracking_uri)
        print(f"mlflow.pyfunc.load_model({address!r})")


def _is_export(config: ExportConfig) -> bool:
    """Whether the folder holds this very checkpoint already, so that only MLflow lacks it."""
    card, result = config.out / "README.md", config.run / "result.json"
    if not card.is_file() or not result.is_file():
        return False
    digest = json.loads(result.read_text(encoding="utf-8"))["checkpoints"][f"{config.checkpoint}.safetensors"]
    return digest in card.read_text(encoding="utf-8")


if __name__ == "__main__":
    run(ExportConfig, export_command)
