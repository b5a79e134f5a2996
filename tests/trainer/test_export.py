"""Take a run away: a folder that timm loads, and scores of a folder of images."""

import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from data_shards.command import InputError, run
from trainer import export as exporting
from trainer.card import ONNX
from trainer.classifier import Classifier
from trainer.export import ExportConfig, export, export_command, to_timm
from trainer.predict import PredictConfig, load_run, predict


@pytest.fixture
def faces(tmp_path):
    """Six pictures in two folders, of other sizes than the model's, one as PNG; and a file that is no image."""
    random, folder = np.random.default_rng(3), tmp_path / "faces"
    (folder / "more").mkdir(parents=True)
    for number in range(6):
        pixels = random.integers(0, 256, (40 + number, 40 + number, 3), dtype=np.uint8)
        name = f"more/{number}.jpg" if number % 2 else f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def read(file) -> dict[str, tuple[float, float]]:
    with open(file, newline="") as opened:
        header, *rows = csv.reader(opened)
    assert header == ["path", "logit", "fake_probability"]
    return {path: (float(logit), float(probability)) for path, logit, probability in rows}


@pytest.mark.parametrize(("backbone", "mode"), [("tiny_vit", "lora"), ("tiny_resnet", "full")])
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_timm_gives_the_logits_of_predict_with_its_own_preprocessing(
    toy_config, train, faces, tmp_path, backbone, mode, checkpoint
):
    config = toy_config(backbone=backbone, mode=mode, epochs=2)
    result = train(config)
    out, scores = tmp_path / "out", tmp_path / "scores.csv"
    export(config.directory, out, checkpoint)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert model.num_classes == 1
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    predict(PredictConfig(run=config.directory, images=faces, out=scores, checkpoint=checkpoint))
    rows = read(scores)
    assert list(rows) == ["0.png", "2.png", "4.png", "more/1.jpg", "more/3.jpg", "more/5.jpg"]
    for name, (logit, probability) in rows.items():
        with torch.no_grad(), Image.open(faces / name) as image:
            expected = model(transform(image.convert("RGB")).unsqueeze(0)).item()
        assert logit == pytest.approx(expected, abs=1e-5)
        assert probability == pytest.approx(1 / (1 + math.exp(-logit)))
    text = (out / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "timm"
    for fact in (*result["data"].values(), result["checkpoints"][f"{checkpoint}.safetensors"], "| 22 |", "none"):
        assert fact in text
    if checkpoint == "best":
        assert f"| AUC | {result['selected']['validation/auc']:.4f} | 22 |" in text


def test_mlflow_loads_it_and_predicts_from_bytes_and_paths(toy_config, train, faces, tmp_path, capsys):
    """A real store: the probabilities are those of trainer.predict, the model is logged once, and holds no pickle."""
    import mlflow
    import pandas as pd

    config, out = toy_config(mode="head", epochs=0.4), tmp_path / "out"
    train(config)
    keys = [f"run={config.directory}", f"out={out}", f"tracking_uri=sqlite:///{tmp_path}/store/mlflow.db"]
    said = []
    for _ in range(2):
        run(ExportConfig, export_command, keys)
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0] == said[1]
    (out / "README.md").write_text("another run's")
    with pytest.raises(SystemExit, match="2"):
        run(ExportConfig, export_command, keys)
    uri = said[0].removeprefix("mlflow.pyfunc.load_model('").removesuffix("')")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/store/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model(uri, dst_path=str(tmp_path))
    finally:
        mlflow.set_tracking_uri(before)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    predict(PredictConfig(run=config.directory, images=faces, out=tmp_path / "scores.csv"))
    expected = [probability for _, probability in read(tmp_path / "scores.csv").values()]
    files = [faces / name for name in read(tmp_path / "scores.csv")]
    by_path = model.predict(pd.DataFrame({"path": [str(file) for file in files]}))
    by_bytes = model.predict(pd.DataFrame({"image": [file.read_bytes() for file in files]}))
    for answer in (by_path, by_bytes):
        assert answer["fake_probability"].tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException, match="enforce schema"):
        model.predict(pd.DataFrame({"image": [3.5]}))


def test_what_cannot_be_exported_is_named_and_leaves_nothing(toy_config, train, tmp_path, monkeypatch):
    config = toy_config(mode="head", epochs=0.4)
    with pytest.raises(InputError, match="is not a finished run"):
        export(config.directory, tmp_path / "out")
    train(config)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(InputError, match="exists already"):
        export(config.directory, full)
    with pytest.raises(InputError, match="is an ONNX graph, which timm cannot build"):
        to_timm(None, SimpleNamespace(name="graph", architecture=ONNX))
    # A head on other features than those that timm's classifier sees is refused, not written with wrong scores.
    monkeypatch.setitem(exporting.POOLING, "pooled", {"global_pool": "avg", "fc_norm": False})
    monkeypatch.setattr(Classifier, "forward", lambda self, images: self.head(self.backbone(images) * 2))
    with pytest.raises(InputError, match="timm's classifier cannot stand on"):
        export(config.directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("layer", ["token", "average"])
def test_other_layers_are_exported_through_timms_pooling(toy_config, train, toy_cards, tmp_path, layer):
    cards = tmp_path / "cards.yaml"
    cards.write_text(toy_cards.read_text().replace("input_size: 32", f"layer: {layer}, input_size: 32"))
    config = toy_config(mode="head", epochs=0.4, cards=cards)
    train(config)
    export(config.directory, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 1
    model, _, _ = load_run(config.directory)
    native = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(native(images).squeeze(-1), model(images))


def test_published_weights_start_a_new_run(toy_config, train, toy_cards, tmp_path, monkeypatch):
    """As docs/TRAINING.md says: a card whose weights are those of a run (here to go on in another mode)."""
    from trainer.backbones import create_backbone, get_card

    monkeypatch.setenv("MODEL_SEPARABILITY_CACHE", str(tmp_path / "cache"))
    first = toy_config(epochs=0.4)
    train(first)
    cards = tmp_path / "cards.yaml"
    weights = f"{{file: {first.directory}/last.safetensors, strip: backbone.model.}}"
    cards.write_text(toy_cards.read_text().replace("{file: absent.safetensors}", weights, 1))
    config = replace(toy_config(cards=cards, mode="head", epochs=0.4), initialisation="pretrained")
    trained, _, _ = load_run(first.directory, "last")
    begun = create_backbone(get_card("tiny_vit", cards))
    for name, tensor in trained.backbone.state_dict().items():
        assert torch.equal(begun.state_dict()[name], tensor)
    assert train(config)["weights"]["sha256"] == begun.weights_sha256


def test_an_unreadable_image_is_named_or_counted(toy_config, train, faces, tmp_path, capsys):
    config = toy_config(mode="head", epochs=0.4)
    train(config)
    (faces / "more" / "1.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = tmp_path / "scores.csv"
    keys = {"run": config.directory, "images": faces, "out": out, "batch_size": 2}
    with pytest.raises(InputError, match=r"more/1\.jpg is no image that can be read .*; remove it or give on_bad=skip"):
        predict(PredictConfig(**keys))
    assert not out.exists()
    predict(PredictConfig(**keys, on_bad="skip"))
    said = capsys.readouterr()
    assert "left out: " in said.err
    assert "5 images, 1 could not be read" in said.out
    assert "more/1.jpg" not in read(out)
    assert len(read(out)) == 5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "give either shards="),
        (["images=FACES", "shards={test: x}"], "give either shards="),
        (["images=FACES"], "images=FOLDER needs out=FILE.csv"),
        (["images=nowhere", "out=x.csv"], "there is no folder nowhere"),
        (["images=EMPTY", "out=x.csv"], "holds no image"),
        (["images=FACES", "out=x.csv"], "is not a finished run"),
    ],
)
def test_mistakes_of_predict(faces, tmp_path, capsys, keys, message):
    (tmp_path / "empty").mkdir()
    known = {"FACES": str(faces), "EMPTY": str(tmp_path / "empty")}
    arguments = [key.split("=")[0] + "=" + known.get(key.split("=")[1], key.split("=")[1]) for key in keys]
    with pytest.raises(SystemExit, match="2"):
        run(PredictConfig, predict, [f"run={tmp_path / 'run'}", *arguments])
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
