"""Backbones: a card made into a torch module that maps normalised images to features.

Two kinds: a timm architecture without its classifier, and an ONNX graph turned into a trainable module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from data_shards.command import InputError
from trainer import weights as weights_of
from trainer.allocator import keep_freed_memory
from trainer.card import ONNX, BackboneCard, get_card, load_cards

__all__ = ["INITIALISATIONS", "Backbone", "BackboneCard", "Layers", "create_backbone", "get_card", "load_cards"]

INITIALISATIONS = ("pretrained", "random")
ONNX_BLOCKS = 12
"""Chunks of an ONNX graph, which has no blocks of its own: as many as a ViT has."""


class Backbone(nn.Module):
    """Normalised images ``float (b, 3, S, S)`` to features ``float (b, num_features)``.

    Attributes: ``card``, ``num_features``, ``initialisation`` (``pretrained`` or ``random``), ``weights_sha256`` (of
    the tensors it was created with, :func:`trainer.weights.state_digest`), ``weights_origin`` (where they came from).
    """

    def __init__(self, card: BackboneCard, model: nn.Module, num_features: int, initialisation: str, origin: str):
        super().__init__()
        self.card = card
        self.model = model
        self.num_features = num_features
        self.initialisation = initialisation
        self.weights_origin = origin
        self.weights_sha256 = ""

    def forward(self, images: Tensor) -> Tensor:
        if self.card.architecture == ONNX:
            features = self.model(images)
        elif self.card.layer == "pooled":
            features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        else:
            features = self.model.forward_features(images)
            if features.ndim == 3:  # class and register tokens come first
                prefix = self.model.num_prefix_tokens
                features = features[:, 0] if self.card.layer == "token" else features[:, prefix:]
        return _average(features, self.num_features)

    def blocks(self) -> list[tuple[str, list[str]]]:
        """Ordered blocks from the stem to the last, each with the full names of its parameters; every parameter is in
        exactly one. A block is what timm groups by layer: the stem, then each residual, inverted-residual or
        transformer block, a closing norm counting with the block before it. So the last k blocks mean the k deepest
        units of a CNN and of a ViT alike. An ONNX graph is cut into 12 runs of consecutive weighted
        layers, in topological order and as equal in number of layers as can be."""
        if self.card.architecture == ONNX:
            return _onnx_blocks(self.model)
        return _timm_blocks(self.model)


class Layers(nn.Module):
    """Normalised images to the features of every layer, stem to head, side by side: ``float (b, sum of widths)``.

    A layer is what timm's ``forward_intermediates`` gives: each block of a transformer, each stage of other networks;
    maps and patch tokens are averaged over positions. The card's own features come last. ``widths``: features of each.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.card = backbone, backbone.card
        if not hasattr(backbone.model, "forward_intermediates"):
            raise InputError(
                f"the layers of {self.card.name} are not known: {self.card.architecture} does not name them"
            )
        backbone.eval()
        with torch.inference_mode():
            side = self.card.input_size
            self.widths = [each.shape[1] for each in self._layers(torch.zeros(1, 3, side, side))]
        self.num_features = sum(self.widths)

    def _layers(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone.model.forward_intermediates(images, intermediates_only=True)  # (b, d, h, w) each
        return [*(each.mean(dim=(2, 3)) for each in maps), self.backbone(images)]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self._layers(images), dim=1)


def create_backbone(
    card: BackboneCard,
    *,
    initialisation: str = "pretrained",
    seed: int = 0,
    drop_path: float = 0.0,
    weights_dir: str | Path | None = None,
) -> Backbone:
    """The backbone of a card, on the CPU, in float32 and training mode.

    ``initialisation='random'`` draws the architecture's own initial weights, from ``seed`` alone (no other random state
    is read or changed); ``pretrained`` ignores ``seed``. ``drop_path`` is the stochastic depth rate, 0 for frozen use.
    ``weights_dir``: see :func:`trainer.weights.locate`. Weights that cannot be had or do not fit raise InputError."""
    if initialisation not in INITIALISATIONS:
        raise InputError(f"initialisation must be one of {', '.join(INITIALISATIONS)}, not {initialisation!r}")
    # Both are the process's; here, since nothing uses a backbone that has not come this way.
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # fp32 means so: by default convolutions on a GPU see 10 of the 23 bits
    random = initialisation == "random"
    located = None if random and card.architecture != ONNX else weights_of.locate(card, weights_dir)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of GPUs, too
        if card.architecture == ONNX:
            model = _onnx_model(card, located, drop_path, random)
        elif random:
            model = build_timm_model(card, drop_path)
        elif located is None:
            model = _timm_from_hub(card, drop_path)
        else:
            model = _timm_from_tensors(card, located, drop_path)
    origin = f"random, seed {seed}" if random else located.origin if located else f"hub {card.weights.hub}"
    backbone = Backbone(card, model, feature_width(card, model), initialisation, origin)
    backbone.weights_sha256 = weights_of.state_digest(backbone.model.state_dict())
    return backbone


def build_timm_model(card: BackboneCard, drop_path: float = 0.0, *, num_classes: int = 0, **options) -> nn.Module:
    """A timm model for the card's input size."""
    import timm

    if card.architecture not in timm.list_models():
        raise InputError(
            f"card {card.name}: this timm has no architecture {card.architecture!r}; see timm.list_models()"
        )
    if drop_path:
        options["drop_path_rate"] = drop_path
    if _needs_image_size(card):
        options["img_size"] = card.input_size
    try:
        return timm.create_model(card.architecture, num_classes=num_classes, **options)
    except TypeError as error:
        if drop_path and "drop_path_rate" in str(error):
            raise InputError(
                f"{card.architecture} of card {card.name} has no stochastic depth: drop_path must be 0"
            ) from None
        raise


def _needs_image_size(card: BackboneCard) -> bool:
    """Whether the architecture must be built for the card's input size: it fixes another one (tables of positions,
    windows) and does not adapt by itself."""
    import timm

    default = timm.get_pretrained_cfg(card.architecture)
    if not default or not default.fixed_input_size or default.input_size[1] == card.input_size:
        return False
    with torch.device("meta"):
        model = timm.create_model(card.architecture)
    return getattr(getattr(model, "patch_embed", None), "strict_img_size", True)


def _timm_from_tensors(card: BackboneCard, located: weights_of.Located, drop_path: float) -> nn.Module:
    """Loading by timm, which resizes position embeddings to the input size; the classifier is dropped after."""
    classes = located.source.num_classes
    with torch.device("meta"):
        shapes = {
            key: tuple(value.shape) for key, value in build_timm_model(card, num_classes=classes).state_dict().items()
        }
    state = weights_of.load_tensors(located, shapes)
    overlay = {"state_dict": state, "num_classes": classes}
    try:
        with _nothing_missing():
            model = build_timm_model(
                card, drop_path, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay
            )
    except (RuntimeError, KeyError) as error:
        raise _misfit(card, str(located.path), error) from None
    model.reset_classifier(0)
    return model


def _timm_from_hub(card: BackboneCard, drop_path: float) -> nn.Module:
    """timm's own weights, loaded with their classifier, which is dropped after."""
    import timm

    tagged = card.weights.hub.removeprefix("timm/")
    config = timm.get_pretrained_cfg(tagged, allow_unregistered=False)
    if config is None:
        raise InputError(f"card {card.name}: this timm knows no weights {tagged!r}; see timm.list_pretrained()")
    options = {"pretrained": True, "pretrained_cfg": config, "num_classes": config.num_classes}
    try:
        with _nothing_missing():
            model = build_timm_model(card, drop_path, **options)
    except InputError:
        raise
    except RuntimeError as error:  # of load_state_dict
        raise _misfit(card, card.weights.hub, error) from None
    except Exception as error:  # the hub's client raises errors of several HTTP libraries, without a common base
        raise weights_of.missing(card, f"{card.weights.hub} could not be had from the hub ({error})") from error
    model.reset_classifier(0)
    return model


@contextmanager
def _nothing_missing() -> Iterator[None]:
    """Inside, every tensor of the architecture must be in the weights. timm loads some architectures leniently (dla,
    siglip without its pooling), and would leave at random what is missing, without a word. What such weights have too
    many is of no effect: that is what timm is lenient for."""
    from timm.models import _builder

    load = _builder.load_pretrained

    def load_whole(model: nn.Module, **options) -> None:
        hook = model.register_load_state_dict_post_hook(_refuse_missing)
        try:
            load(model, **options)
        finally:
            hook.remove()

    _builder.load_pretrained = load_whole
    try:
        yield
    finally:
        _builder.load_pretrained = load


def _refuse_missing(model: nn.Module, keys) -> None:
    if keys.missing_keys:
        found = f"; unexpected key(s): {', '.join(keys.unexpected_keys)}" if keys.unexpected_keys else ""
        raise RuntimeError(f"Missing key(s): {', '.join(keys.missing_keys)}"[:200] + found)


def _misfit(card: BackboneCard, weights: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(f"{weights} does not fit {card.architecture} of card {card.name}: {reason}")


def _onnx_model(card: BackboneCard, located: weights_of.Located, drop_path: float, random: bool) -> nn.Module:
    from trainer import onnx_graph

    if drop_path:
        raise InputError(f"card {card.name} is an ONNX graph, which has no stochastic depth: drop_path must be 0")
    model = onnx_graph.to_module(located.path, card.layer)
    if random:
        onnx_graph.initialise(model)
    return model


def feature_width(card: BackboneCard, model: nn.Module) -> int:
    """Number of features of a card's model; an ONNX graph is asked by running it."""
    if card.architecture != ONNX:
        return model.head_hidden_size if card.layer == "pooled" else model.num_features
    model.eval()
    try:
        with torch.inference_mode():
            output = model(torch.zeros(2, 3, card.input_size, card.input_size))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"card {card.name}: its ONNX graph fails on a batch of two images: {reason}") from None
    finally:
        model.train()
    return output.shape[-1] if output.ndim == 3 else output.shape[1]


def _average(features: Tensor, num_features: int) -> Tensor:
    """Mean over tokens of (b, n, d) or over positions of maps (b, d, h, w) or (b, h, w, d); (b, d) as it is."""
    if features.ndim == 4 and features.shape[1] == num_features:
        return features.mean(dim=(2, 3))
    return features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features


def _timm_blocks(model: nn.Module) -> list[tuple[str, list[str]]]:
    from timm.models import group_parameters

    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    blocks: list[list[str]] = []
    for _, names in sorted(group_parameters(model, model.group_matcher(coarse=False)).items()):
        if blocks and max(dimensions[name] for name in names) == 1:  # a closing norm
            blocks[-1] += names
        else:
            blocks.append(list(names))
    return _named(blocks)


def _onnx_blocks(model: nn.Module) -> list[tuple[str, list[str]]]:
    from trainer.onnx_graph import parameters_in_order

    layers = parameters_in_order(model)
    count = min(ONNX_BLOCKS, len(layers))
    bounds = [round(index * len(layers) / count) for index in range(count + 1)]
    chunks = [layers[low:high] for low, high in itertools.pairwise(bounds)]
    return _named([[name for layer in chunk for name in layer] for chunk in chunks])


def _named(groups: list[list[str]]) -> list[tuple[str, list[str]]]:
    """Name each group by its number and the module its parameters share, else that of the first one; parameters get
    the backbone's own prefix."""
    result = []
    for number, names in enumerate(groups):
        levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
        shared = [level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)]
        module = ".".join(shared) or names[0].rpartition(".")[0] or names[0]
        result.append((f"{number:02d} {module}", [f"model.{name}" for name in names]))
    return result
