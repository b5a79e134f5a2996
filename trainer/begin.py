"""The model that a run begins with: a backbone of its card with what learns in it, or a head on features."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.backbones import create_backbone
from trainer.card import BackboneCard
from trainer.classifier import Classifier, checkpoint_gradients, freeze, freeze_unused
from trainer.config import FinetuneConfig
from trainer.inputs import FeatureBackbone, HeadFeatures


@dataclass
class Beginning:
    """A model before its first update, and what a result says of it."""

    model: Classifier
    parameters: int
    """Of backbone and head, without low-rank updates."""
    trainable_parameters: int
    weights_sha256: str
    weights_origin: str


def begin(config: FinetuneConfig, card: BackboneCard, *, distributed: bool) -> Beginning:
    """The model of ``config``; ``distributed``: several processes or DeepSpeed will train it."""
    backbone = create_backbone(
        card,
        initialisation=config.initialisation,
        seed=config.seed,
        drop_path=config.drop_path,
        weights_dir=config.weights_dir,
    )
    model = Classifier(backbone, seed=config.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    freeze(model, config)
    if distributed:
        freeze_unused(model, card.input_size)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Beginning(model, parameters, trainable, backbone.weights_sha256, backbone.weights_origin)


def begin_on_features(config: FinetuneConfig, features: HeadFeatures) -> Beginning:
    """The head alone: the output of the backbone is there."""
    facts = features.train.provenance
    model = Classifier(FeatureBackbone(facts["num_features"]), seed=config.seed)
    trainable = sum(parameter.numel() for parameter in model.parameters())
    return Beginning(
        model, facts["parameters"] + trainable, trainable, facts["weights_sha256"], facts["weights_origin"]
    )
