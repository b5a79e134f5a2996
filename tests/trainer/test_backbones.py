"""Backbones from cards: structure, features, blocks, initialisation, ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper

from data_shards.command import InputError
from trainer import backbones, onnx_graph
from trainer.backbones import create_backbone, get_card, load_cards
from trainer.card import ONNX, read_cards

CARDS = load_cards()
TIMM_CARDS = [card for card in CARDS.values() if card.architecture != ONNX]
HUB_CARDS = [card for card in CARDS.values() if card.weights.hub]


def by_name(card):
    return card.name


def on_meta(card) -> backbones.Backbone:
    """The card's backbone without memory for its weights."""
    with torch.device("meta"):
        model = backbones.build_timm_model(card)
        return backbones.Backbone(card, model, backbones.feature_width(card, model), "random", "").eval()


def test_there_are_enough_cards():
    assert len(TIMM_CARDS) >= 30
    assert len({card.family for card in CARDS.values()}) >= 8
    for field in ("pretext_task", "family", "licence"):
        assert all(getattr(card, field) for card in CARDS.values())


@pytest.mark.parametrize("card", TIMM_CARDS, ids=by_name)
def test_every_timm_card_gives_features_of_the_stated_size_and_blocks_that_cover_it(card):
    backbone = on_meta(card)
    output = backbone(torch.empty(2, 3, card.input_size, card.input_size, device="meta"))
    assert output.shape == (2, backbone.num_features)
    in_blocks = [name for _, names in backbone.blocks() for name in names]
    assert sorted(in_blocks) == sorted(name for name, _ in backbone.named_parameters())
    assert len(backbone.blocks()) >= 9  # the shallowest here, a ResNet-18, has a stem and eight residual blocks


@pytest.mark.parametrize("card", HUB_CARDS, ids=by_name)
def test_hub_cards_agree_with_timm(card):
    tag = card.weights.hub.removeprefix("timm/")
    assert tag in timm.list_pretrained()
    config = timm.get_pretrained_cfg(tag)
    assert config.hf_hub_id == card.weights.hub
    assert (card.mean, card.std) == (config.mean, config.std)
    assert card.input_size == config.input_size[1] or f"{config.input_size[1]} px" in card.note
    assert ("non-commercial" in card.licence) == ("nc" in config.license.split("-"))


def test_blocks_of_a_vit_and_of_a_cnn_are_its_layers():
    # ViT-S: embeddings, then 12 transformer blocks, the final norm going with the last one.
    # ResNet-50: stem, then 3 + 4 + 6 + 3 bottlenecks.
    vit, resnet = on_meta(CARDS["dino_vits16"]).blocks(), on_meta(CARDS["resnet50_imagenet"]).blocks()
    assert len(vit) == 1 + 12
    assert len(resnet) == 1 + 3 + 4 + 6 + 3
    assert {"model.cls_token", "model.pos_embed", "model.patch_embed.proj.weight"} <= set(vit[0][1])
    assert {"model.blocks.11.mlp.fc2.weight", "model.norm.weight"} <= set(vit[-1][1])
    assert "model.conv1.weight" in resnet[0][1]
    assert all(name.startswith("model.layer4.2.") for name in resnet[-1][1])


def test_random_weights_come_from_the_seed_alone(tiny_cards):
    card = get_card("tiny_vit", tiny_cards)
    before = torch.random.get_rng_state()
    first = create_backbone(card, initialisation="random", seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert create_backbone(card, initialisation="random", seed=3).weights_sha256 == first.weights_sha256
    assert create_backbone(card, initialisation="random", seed=4).weights_sha256 != first.weights_sha256
    pretrained = create_backbone(card)
    assert pretrained.weights_sha256 != first.weights_sha256
    assert pretrained.weights_sha256 == create_backbone(card, seed=9).weights_sha256
    assert (first.initialisation, pretrained.initialisation) == ("random", "pretrained")


def test_float32_is_float32_in_convolutions_on_a_gpu_too(tiny_cards, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    create_backbone(get_card("tiny_resnet", tiny_cards), initialisation="random")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_layers_of_a_vit(tiny_cards):
    # test_vit at 32 px and patches of 16: tokens are 1 class token and 2 x 2 patches.
    text = tiny_cards.read_text()
    images = torch.randn(2, 3, 32, 32)
    features = {}
    for layer in ("pooled", "token", "average"):
        path = tiny_cards.with_name(f"{layer}.yaml")
        path.write_text(text.replace("licence: none", f"layer: {layer}, licence: none"))
        backbone = create_backbone(next(read_cards(path))).eval()
        with torch.inference_mode():
            features[layer] = backbone(images)
            tokens = backbone.model.forward_features(images)
    assert tokens.shape == (2, 5, 64)
    torch.testing.assert_close(features["pooled"], tokens[:, 0])  # timm's own pooling of this model is the class token
    torch.testing.assert_close(features["token"], tokens[:, 0])
    torch.testing.assert_close(features["average"], tokens[:, 1:].sum(dim=1) / 4)


def test_stochastic_depth_where_the_architecture_has_it(tiny_cards):
    backbone = create_backbone(get_card("tiny_vit", tiny_cards), drop_path=0.5)
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    assert not torch.equal(backbone.train()(images), backbone(images))
    assert torch.equal(backbone.eval()(images), backbone(images))
    with pytest.raises(InputError, match="drop_path must be 0"):
        create_backbone(CARDS["expression_densenet121"], initialisation="random", drop_path=0.1)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'dinov2_vits14'"):
        get_card("dino2_vits14")
    with pytest.raises(InputError, match="initialisation must be one of pretrained, random"):
        create_backbone(CARDS["dino_vits16"], initialisation="noise")


def test_weights_that_do_not_fit_are_refused(tiny_cards, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_cards.with_name("tiny_vit.safetensors"))
    state.pop("norm.weight")
    save_file(state, tmp_path / "tiny_vit.safetensors")
    with pytest.raises(InputError, match=r"does not fit test_vit of card tiny_vit: .*Missing key.*norm\.weight"):
        create_backbone(get_card("tiny_vit", tiny_cards), weights_dir=tmp_path)


def test_nothing_is_left_at_random_where_timm_itself_is_lenient(tiny_cards, tmp_path):
    """timm loads DLA with strict=False, since old files of it hold layers that were never used."""
    from safetensors.torch import save_file

    whole = timm.create_model("dla34", num_classes=0).state_dict()
    cards = tmp_path / "cards.yaml"
    cards.write_text(tiny_cards.read_text().replace("test_resnet", "dla34"))
    card = get_card("tiny_resnet", cards)
    save_file({**whole, "level3.project.0.weight": torch.ones(1)}, tmp_path / "tiny_resnet.safetensors")
    loaded = create_backbone(card, weights_dir=tmp_path).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in loaded.items())
    lost = {name: value for name, value in whole.items() if not name.startswith("level5.")}
    save_file(lost, tmp_path / "tiny_resnet.safetensors")
    with pytest.raises(InputError, match=r"does not fit dla34 of card tiny_resnet: Missing key\(s\): level5\."):
        create_backbone(card, weights_dir=tmp_path)


def test_positions_are_resized_to_the_card(tiny_cards, tmp_path):
    from safetensors.torch import save_file

    # A ViT with 14 x 14 positions, for a card of 32 px, which is 2 x 2 patches of 16.
    full = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(full.state_dict(), tmp_path / "tiny_vit.safetensors")
    cards = tmp_path / "cards.yaml"
    cards.write_text(tiny_cards.read_text().replace("test_vit", "vit_tiny_patch16_224"))
    backbone = create_backbone(get_card("tiny_vit", cards), weights_dir=tmp_path)
    assert backbone.model.pos_embed.shape == (1, 1 + 4, 192)
    assert torch.equal(backbone.model.pos_embed[:, 0], full.pos_embed[:, 0])
    assert torch.equal(backbone.model.blocks[0].attn.qkv.weight, full.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("name", ["resnet18_imagenet", "dinov2_vits14_reg"])
def test_hub_weights_are_loaded_strictly_and_without_their_classifier(name, monkeypatch):
    # The hub is stood in for by what timm would have downloaded: the state dict of the tagged model.
    tag = CARDS[name].weights.hub.removeprefix("timm/")
    stored = timm.create_model(tag.split(".")[0]).state_dict()
    asked = []
    hub = "timm.models._builder.load_state_dict_from_hf"
    monkeypatch.setattr(hub, lambda repo, *_, **__: asked.append(repo) or dict(stored))
    backbone = create_backbone(CARDS[name])
    assert asked in ([f"timm/{tag}"], [(f"timm/{tag}",)])
    kept = backbone.model.state_dict()
    same = [key for key in kept if key in stored and torch.equal(kept[key], stored[key])]
    assert set(kept) - set(same) <= {"pos_embed"}  # resized for DINOv2
    assert not any(key.startswith(("fc.", "head.")) for key in kept)
    stored.pop(same[0])
    with pytest.raises(InputError, match=f"^timm/{tag} does not fit .* of card {name}: Missing key"):
        create_backbone(CARDS[name])
    monkeypatch.setattr(hub, lambda *_, **__: [].pop())  # any error that is not of the loading
    with pytest.raises(InputError, match=f"no weights for backbone '{name}': .* could not be had from the hub"):
        create_backbone(CARDS[name])


ONNX_CARD = """
- name: graph
  architecture: onnx
  pretext_task: none
  family: test
  weights: {file: PATH}
  layer: LAYER
  input_size: 8
  mean: [0.5, 0.5, 0.5]
  std: [0.5, 0.5, 0.5]
  licence: none
"""


def small_graph(path, *, activation: str = "PRelu", opset: int = 15) -> onnx.ModelProto:
    """Conv 3→4, batch norm, PReLU, mean over positions, matrix 4→5 with bias: all weights drawn with seed 0."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "scale": (4,), "shift": (4,), "mean": (4,), "slope": (4, 1, 1)}
    weights = {name: rng.normal(size=shape) for name, shape in {**shapes, "m": (4, 5), "out.bias": (5,)}.items()}
    weights["var"] = rng.uniform(0.5, 2, 4)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "var"], ["norm"]),
        helper.make_node(activation, ["norm", "slope"] if activation == "PRelu" else ["norm"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["product"]),
        helper.make_node("Add", ["product", "out.bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return model


def graph_card(path, layer: str = "pooled"):
    cards = path.with_suffix(".yaml")
    cards.write_text(ONNX_CARD.replace("PATH", str(path)).replace("LAYER", layer))
    return get_card("graph", cards)


def test_onnx_graph_gives_what_the_reference_gives_and_is_trainable(tmp_path):
    from onnx.reference import ReferenceEvaluator

    model = small_graph(tmp_path / "small.onnx")
    backbone = create_backbone(graph_card(tmp_path / "small.onnx"))
    images = torch.randn(3, 3, 8, 8)
    expected = ReferenceEvaluator(model).run(None, {"x": images.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(backbone.eval()(images).numpy(), expected, atol=1e-5)
    assert backbone.num_features == 5
    backbone.train()(images).square().sum().backward()
    weights = dict(backbone.named_parameters())
    # convolution (2), batch norm (2), slopes, matrix, its bias
    assert sorted(tuple(value.shape) for value in weights.values()) == sorted(
        [(4, 3, 3, 3), (4,), (4,), (4,), (4,), (4, 5), (5,)]
    )
    for name, value in weights.items():
        assert value.grad is not None, name
        assert value.grad.abs().max() > 0, name
    assert [len(names) for _, names in backbone.blocks()] == [5, 2]  # two weighted layers with what follows them


def test_onnx_graph_is_cut_at_the_layer_of_the_card(tmp_path):
    small_graph(tmp_path / "small.onnx")
    backbone = create_backbone(graph_card(tmp_path / "small.onnx", "active")).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        maps = backbone.model(images)
        assert maps.shape == (2, 4, 8, 8)
        torch.testing.assert_close(backbone(images), maps.mean(dim=(2, 3)))
    assert all("Mat" not in name and "out" not in name for name, _ in backbone.named_parameters())
    with pytest.raises(InputError, match="has no tensor 'nowhere'"):
        create_backbone(graph_card(tmp_path / "small.onnx", "nowhere"))


def test_onnx_random_control_or_a_clear_no(tmp_path):
    small_graph(tmp_path / "small.onnx")
    card = graph_card(tmp_path / "small.onnx", "active")
    digests = [create_backbone(card, initialisation="random", seed=seed).weights_sha256 for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert create_backbone(card).weights_sha256 not in digests
    with pytest.raises(InputError, match="no random control"):  # a bare matrix has no default initialisation
        create_backbone(graph_card(tmp_path / "small.onnx"), initialisation="random")


def test_onnx_files_that_are_refused(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="not an ONNX file"):
        onnx_graph.parse(path)
    model = small_graph(path)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="keeps tensor w in another file"):
        onnx_graph.parse(path)
    small_graph(path, activation="Mish", opset=18)
    with pytest.raises(InputError, match="cannot be turned into a torch module"):
        create_backbone(graph_card(path))
