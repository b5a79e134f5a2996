"""Cards as text, and weights found, verified, read and converted."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_shards.command import InputError
from trainer import weights as weights_of
from trainer.backbones import create_backbone, get_card, load_cards
from trainer.card import Package, Source, card_fields, read_cards
from trainer.preprocess import normalize

CARDS = load_cards()
PACKAGED = [card for card in CARDS.values() if card.weights.package]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODEL_SEPARABILITY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Cards -------------------------------------------------------------------------------------------------------------


def test_every_card_survives_being_written_and_read(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump([json.loads(json.dumps(card_fields(card))) for card in CARDS.values()]))
    assert {card.name: card for card in read_cards(path)} == CARDS


def test_the_card_of_the_documentation_is_one(tmp_path):
    page = Path("docs/TRAINING.md").read_text().split("## Your own backbone")[1]
    (tmp_path / "cards.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    (card,) = read_cards(tmp_path / "cards.yaml")
    assert (card.weights.kind(), card.architecture) == ("file", "vit_base_patch16_224")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretext": "x"}, r"card mine: unknown key pretext; did you mean 'pretext_task'\?"),
        ({"weights": {"hubb": "timm/a.b"}}, r"unknown key weights.hubb; did you mean 'hub'\?"),
        ({"weights": {"hub": "timm/resnet18.a1_in1k", "file": "x.pth"}}, "exactly one of hub, hub_file, file, package"),
        ({"weights": {}}, "exactly one of .*; given: none"),
        ({"weights": {"hub": "timm/resnet50.a1_in1k"}}, "weights.hub must be timm/resnet18.TAG"),
        ({"weights": {"file": "x.pth", "match": "shape"}}, "weights.match must be 'name' or 'order'"),
        ({"weights": {"package": {"name": "a"}}}, "key weights.package.version is missing"),
        ({"mean": [0.5, 0.5]}, "mean must be a list of 3"),
        ({"std": [0.5, 0.5, 0]}, "std must be positive"),
        ({"input_size": "224"}, "input_size must be int, not '224'"),
        ({"layer": "last"}, "layer must be 'pooled', 'token' or 'average'"),
        ({"architecture": "resnet18.a1_in1k"}, "timm architecture without tag"),
        ({"licence": None}, "licence must be str"),
        ({"name": "dino_vits16"}, "a card named 'dino_vits16' exists already"),
    ],
)
def test_a_wrong_card_is_one_clear_line(tmp_path, change, message):
    card = {
        "name": "mine",
        "architecture": "resnet18",
        "pretext_task": "none",
        "family": "test",
        "weights": {"hub": "timm/resnet18.a1_in1k"},
        "input_size": 224,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "licence": "none",
    }
    path = tmp_path / "cards.yaml"
    path.write_text(yaml.safe_dump([card]))
    assert load_cards(path)["mine"].mean == (0.5, 0.5, 0.5)  # without the change it is right
    path.write_text(yaml.safe_dump([card | change]))
    with pytest.raises(InputError, match=message) as error:
        load_cards(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: 1", "must be a list"), ("- [", "not YAML"), ("- 3", "number 1: it must be a mapping")]
)
def test_a_file_that_holds_no_cards(tmp_path, text, message):
    path = tmp_path / "cards.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_cards(path)
    with pytest.raises(InputError, match="No such file"):
        load_cards(tmp_path / "absent.yaml")


# Conversion --------------------------------------------------------------------------------------------------------


def test_strip_rename_and_concatenation_by_hand():
    tensors = {
        "net.q": torch.full((2, 3), 1.0),
        "net.k": torch.full((2, 3), 2.0),
        "net.first": torch.full((1, 1, 3), 3.0),
        "net.rest": torch.full((1, 4, 3), 4.0),
        "net.head.bias": torch.zeros(9),
        "other": torch.zeros(1),
    }
    rules = (("^q$", "qk.weight#0"), ("^k$", "qk.weight#1"), ("^rest$", "pos#1"), ("^first$", "pos#0"), ("^head.*", ""))
    result = weights_of.convert(tensors, Source(file="x", strip="net.", rename=rules), {})
    assert set(result) == {"qk.weight", "pos"}
    assert result["qk.weight"].tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2  # equal shapes: along the first dimension
    assert result["pos"].shape == (1, 5, 3)  # along the one in which they differ
    assert result["pos"][0, :, 0].tolist() == [3.0, 4.0, 4.0, 4.0, 4.0]


def test_match_by_order():
    source = Source(file="x", match="order")
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(2), "b.num_batches_tracked": torch.tensor(7)}
    shapes = {"conv.weight": (2, 3), "bn.bias": (2,), "bn.num_batches_tracked": ()}
    result = weights_of.convert(tensors, source, shapes)
    assert result["conv.weight"] is tensors["a"]
    assert result["bn.bias"] is tensors["b"]
    assert set(result) == set(shapes)
    with pytest.raises(InputError, match=r"a \(2, 3\) does not fit conv.weight \(3, 2\)"):
        weights_of.convert(tensors, source, shapes | {"conv.weight": (3, 2)})
    with pytest.raises(InputError, match="needs 1 tensors of the architecture, the file has 2"):
        weights_of.convert(tensors, source, {"conv.weight": (2, 3)})


def test_onnx_matrices_are_named_after_their_bias(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"onnx::MatMul_7": matrix, "fc.bias": np.zeros(3, np.float32), "other.bias": np.ones(3, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["p"]),
            helper.make_node("Add", ["fc.bias", "p"], ["q"]),
            helper.make_node("Add", ["q", "other.bias"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    from trainer.onnx_graph import read_tensors

    read = read_tensors(path)
    assert set(read) == {"fc.weight", "fc.bias", "other.bias"}
    assert read["fc.weight"].tolist() == matrix.T.tolist()  # torch keeps (out, in), ONNX multiplies by (in, out)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.integers(0, 7), st.booleans())
def test_state_digest_changes_with_every_part_and_not_with_order(values, position, double):
    state = {"a": torch.tensor(values), "b": torch.ones(2, 2)}
    digest = weights_of.state_digest(state)
    assert weights_of.state_digest(dict(reversed(state.items()))) == digest
    changed = state["a"].clone()
    changed[position % len(values)] += 1e7
    assert weights_of.state_digest(state | {"a": changed}) != digest
    assert weights_of.state_digest({"c": state["a"], "b": state["b"]}) != digest
    assert weights_of.state_digest(state | {"b": torch.ones(4)}) != digest
    if double:
        assert weights_of.state_digest(state | {"a": state["a"].double()}) != digest


# Files -------------------------------------------------------------------------------------------------------------


def test_weights_dir_wins_and_is_verified(tiny_cards, tmp_path):
    card = get_card("tiny_vit", tiny_cards)
    state = {key: (value / 2).half() for key, value in load_file(tiny_cards.with_name("tiny_vit.safetensors")).items()}
    path = tmp_path / "tiny_vit.safetensors"
    save_file(state, path)
    backbone = create_backbone(card, weights_dir=tmp_path)
    assert backbone.model.cls_token.dtype == torch.float32
    assert torch.equal(backbone.model.cls_token, state["cls_token"].float())
    assert backbone.weights_sha256 != create_backbone(card).weights_sha256

    listing = [{"name": "tiny_vit", "num_classes": 0, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    (tmp_path / "weights.json").write_text(json.dumps(listing))
    assert create_backbone(card, weights_dir=tmp_path).weights_sha256 == backbone.weights_sha256
    (tmp_path / "weights.json").write_text(json.dumps([listing[0] | {"sha256": "0" * 64}]))
    with pytest.raises(InputError, match=r"weights of tiny_vit: .* has sha256 .*expected 0000"):
        create_backbone(card, weights_dir=tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"lists tiny_vit, but .* is not there"):
        create_backbone(card, weights_dir=tmp_path)
    # a backbone that the folder does not have comes from its card's own source
    assert create_backbone(get_card("tiny_resnet", tiny_cards), weights_dir=tmp_path).weights_origin.startswith("file")
    with pytest.raises(InputError, match="is not a folder"):
        create_backbone(card, weights_dir=tmp_path / "absent")


def test_a_checkpoint_is_read_without_running_anything_in_it(tiny_cards, tmp_path, cache):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    text = tiny_cards.read_text().replace("tiny_vit.safetensors}", "vit.pth, inner: state_dict, strip: module.}")
    (tmp_path / "cards.yaml").write_text(text.replace(str(tiny_cards.parent), str(tmp_path)))
    state = load_file(tiny_cards.with_name("tiny_vit.safetensors"))
    checkpoint = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(checkpoint, tmp_path / "vit.pth")
    card = get_card("tiny_vit", tmp_path / "cards.yaml")
    assert create_backbone(card).weights_sha256 == create_backbone(get_card("tiny_vit", tiny_cards)).weights_sha256
    assert len(list((cache / "converted").glob("*.safetensors"))) == 1

    torch.save(checkpoint | {"payload": Payload()}, tmp_path / "vit.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        create_backbone(card)
    assert not (tmp_path / "ran").exists()
    torch.save({"model": state}, tmp_path / "vit.pth")
    with pytest.raises(InputError, match=r"has no entry 'state_dict' \(weights.inner\); it has \['model'\]"):
        create_backbone(card)


def test_missing_weights_name_the_card_and_the_ways_to_get_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    ways = r"no weights for backbone 'NAME': .*WAY.*NAME\.safetensors.*weights_dir.*initialisation=random"
    for name, way in (
        ("dino_vits16", "hf download timm/vit_small_patch16_224.dino"),
        ("edgeface_s", "there is no file"),
    ):
        with pytest.raises(InputError, match=ways.replace("NAME", name).replace("WAY", way)):
            create_backbone(CARDS[name])


# Packages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the package registry, with one wheel that holds weights."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('executed')")
        wheel.writestr("tiny_weights/model.bin", b"weights")
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return folder


def test_a_file_of_a_wheel_is_downloaded_once_verified_and_kept(registry, cache):
    package = Package("tiny-weights", "1.0", "tiny_weights/model.bin", hashlib.sha256(b"weights").hexdigest())
    path = weights_of.package_file(package, "tiny")
    assert path.read_bytes() == b"weights"
    (registry / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert weights_of.package_file(package, "tiny") == path
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == [path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, r"tiny_weights/model.bin in tiny_weights-1.0.* has sha256 .*, expected 0000"),
        ({"file": "tiny_weights/other.bin"}, "has no file tiny_weights/other.bin"),
        ({"version": "2.0"}, r"backbone 'tiny': pip could not download tiny-weights==2.0 \(ERROR: .*weights_dir"),
    ],
)
def test_a_wheel_that_is_not_as_the_card_says_leaves_nothing_behind(registry, cache, change, message):
    right = {"name": "tiny-weights", "version": "1.0", "file": "tiny_weights/model.bin"}
    right["sha256"] = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(InputError, match=message):
        weights_of.package_file(Package(**right | change), "tiny")
    assert [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"] == []


# Real weights ------------------------------------------------------------------------------------------------------


@pytest.mark.assets
@pytest.mark.parametrize("entry", ["dinov2_vits14", "augnet_resnet50", "edgeface_s", "mobilesam_tiny_vit_5m"])
def test_real_weights_of_a_folder(assets, entry):
    backbone = create_backbone(CARDS[entry], weights_dir=assets / "weights").eval()
    size = backbone.card.input_size
    with torch.inference_mode():
        features = backbone(torch.randn(2, 3, size, size))
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-3


@pytest.mark.assets
def test_every_listed_weight_has_its_card(assets):
    for entry in json.loads((assets / "weights" / "weights.json").read_text()):
        card = CARDS[entry["name"]]
        assert card.architecture == entry["timm"].split(".")[0]
        assert card.input_size == entry["input_size"]
        assert [*card.mean] == entry["normalization"]["mean"]
        assert [*card.std] == entry["normalization"]["std"]
        located = weights_of.locate(card, assets / "weights")
        assert located.source.num_classes == entry["num_classes"]


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("card", [card for card in PACKAGED if card.architecture != "onnx"], ids=lambda card: card.name)
def test_weights_of_packages_equal_the_local_ones(assets, card):
    # The local files keep matrices in float16: rounded alike, every tensor is the same, bit for bit.
    local = load_file(assets / "weights" / f"{card.name}.safetensors")
    shapes = {key: tuple(value.shape) for key, value in local.items()}
    located = weights_of.locate(card)
    assert located.origin.startswith("PyPI")
    if card.weights.match == "order":  # needs the architecture's own order
        model = timm.create_model(card.architecture, num_classes=card.weights.num_classes)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    packaged = weights_of.load_tensors(located, shapes)
    assert set(packaged) == set(local)
    for name, value in local.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(packaged[name].to(value.dtype), value), name


@pytest.mark.slow
@pytest.mark.parametrize("card", [card for card in PACKAGED if card.architecture == "onnx"], ids=lambda card: card.name)
def test_packaged_onnx_graphs_equal_the_reference(card):
    import onnx
    from onnx import helper, version_converter
    from onnx.reference import ReferenceEvaluator

    backbone = create_backbone(card).eval()
    # The reference runs batch norms of older operator sets in training mode.
    model = version_converter.convert_version(onnx.load(weights_of.locate(card).path), 15)
    if card.layer != "pooled":
        del model.graph.output[:]
        model.graph.output.append(helper.make_empty_tensor_value_info(card.layer))
    pixels = torch.randint(0, 256, (2, card.input_size, card.input_size, 3), dtype=torch.uint8)
    images = normalize(pixels, card)
    expected = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: images.numpy()})[0]
    expected = expected.mean(axis=(2, 3)) if expected.ndim == 4 else expected
    with torch.inference_mode():
        found = backbone(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
