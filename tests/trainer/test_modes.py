"""What learns and how fast: layer-wise rates, modes, and the options that change how the weights are trained."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from data_shards.command import InputError
from data_shards.pack import pack
from trainer.backbones import create_backbone, get_card
from trainer.classifier import Classifier, checkpoint_gradients, freeze, optimizer, plain_weights
from trainer.config import run_name
from trainer.loop import Stopped
from trainer.predict import score
from trainer.schedule import learning_rate_schedule

BACKBONES = ("tiny_vit", "tiny_resnet")
MODES = ("head", "last_blocks", "norm", "lora", "full")


def classifier(toy_config, mode="full", **keys):
    """The model of a toy config with what learns in ``mode``."""
    config = toy_config(mode=mode, **keys)
    backbone = create_backbone(get_card(config.backbone, config.cards), initialisation="random", seed=0)
    model = Classifier(backbone, seed=0)
    freeze(model, config)
    return model


def applied_rates(model, opt) -> dict[str, float]:
    """Learning rate of each parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in opt.param_groups for p in group["params"]}


def test_layer_decay_by_hand(toy_config):
    """test_vit has a stem and six blocks. The head is 0 blocks away from itself, blocks.5 is 1, blocks.0 is 6, and the
    stem 7: with decay 1/2, their rates are 1, 1/2, 1/64 and 1/128 of the head's."""
    model = classifier(toy_config)
    opt = optimizer(model, learning_rate=0.8, weight_decay=0.1, layer_decay=0.5)
    config = toy_config(learning_rate=0.8, warmup=0.2)
    rate = learning_rate_schedule(opt, config, 10)
    scales = {
        "head.weight": 1,
        "head.bias": 1,
        "backbone.model.norm.weight": 1 / 2,  # a closing norm counts with the block before it
        "backbone.model.blocks.5.mlp.fc1.weight": 1 / 2,
        "backbone.model.blocks.3.attn.qkv.bias": 1 / 8,
        "backbone.model.blocks.0.norm1.weight": 1 / 64,
        "backbone.model.patch_embed.proj.weight": 1 / 128,
        "backbone.model.pos_embed": 1 / 128,
    }
    # 2 warm-up updates: 0.8 x 1/3, 0.8 x 2/3; then 0.8 (1 + cos(pi t / 8)) / 2, here t = 0 and t = 5.
    for step, head in ((0, 0.8 / 3), (1, 1.6 / 3), (2, 0.8), (7, 0.4 * (1 + math.cos(5 * math.pi / 8)))):
        assert rate(step) == pytest.approx(head)
        rates = applied_rates(model, opt)
        assert len(rates) == len(list(model.parameters()))
        for name, scale in scales.items():
            assert rates[name] == pytest.approx(head * scale), name
    decays = {
        name: group["weight_decay"]
        for group in opt.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert decays["backbone.model.blocks.3.attn.qkv.weight"] == 0.1
    assert decays["backbone.model.blocks.3.attn.qkv.bias"] == decays["backbone.model.norm.weight"] == 0
    assert decays["backbone.model.pos_embed"] == decays["backbone.model.cls_token"] == 0  # as timm would have it


def test_without_layer_decay_all_learn_alike(toy_config):
    model = classifier(toy_config, backbone="tiny_resnet")
    opt = optimizer(model, learning_rate=0.3, weight_decay=0.1)
    assert set(applied_rates(model, opt).values()) == {0.3}
    assert len(opt.param_groups) == 2


@pytest.fixture(scope="session")
def easy_sets(tmp_path_factory):
    """32 pictures to learn by heart and 8 to select by: grey real ones, and fake ones of noise."""
    root, random, rows = tmp_path_factory.mktemp("easy"), np.random.default_rng(1), []
    for split, count in (("train", 32), ("validation", 8)):
        for number in range(count):
            pixels = np.full((32, 32, 3), random.integers(110, 146), np.int64)
            if number % 2:
                pixels += random.integers(-100, 101, pixels.shape)
            path = f"{split}-{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / path)
            label, method = (("real", "pristine"), ("fake", "noise"))[number % 2]
            rows.append((path, label, method, path, "easy", split))
    faces = pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset", "split"])
    return pack(faces, root, root / "shards", workers=1)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_32_images_by_heart(toy_config, train, easy_sets, backbone, mode):
    from trainer.predict import load_run

    rate = 0.1 if mode == "head" else 0.003
    config = toy_config(backbone=backbone, mode=mode, learning_rate=rate, **BY_HEART)
    config = replace(config, train=easy_sets["train"], validation=easy_sets["validation"])
    result = train(config)
    model, card, _ = load_run(config.directory, "last")
    assert auc(model, card, easy_sets["train"]) == 1.0
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (result["trainable_parameters"] < result["parameters"]) == (mode != "full")


BY_HEART = {"epochs": 40, "flip": False, "evaluate_every": 100, "log_every": 99}


def auc(model, card, folder) -> float:
    from sklearn.metrics import roc_auc_score

    from data_shards.loader import evaluation_batches
    from data_shards.manifest import ShardSet
    from trainer.preprocess import normalize

    shards = ShardSet.open(folder)
    batch = next(iter(evaluation_batches(shards, batch_size=len(shards), image_size=card.input_size)))
    with torch.no_grad():
        return roc_auc_score(shards.labels, model(normalize(batch.images, card)).numpy())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mode", ["norm", "lora"])
def test_what_norm_and_lora_freeze_stays_bit_equal(toy_config, train, backbone, mode):
    config = toy_config(backbone=backbone, mode=mode, epochs=0.8, weight_decay=0.1)
    train(config)
    before = create_backbone(get_card(backbone, config.cards), initialisation="random", seed=0).model
    kinds = {"norm": (torch.nn.LayerNorm, torch.nn.BatchNorm2d), "lora": (torch.nn.Linear, torch.nn.Conv2d)}[mode]
    learning = {name for name, module in before.named_modules() if isinstance(module, kinds)}
    after = load_file(config.directory / "last.safetensors")
    assert set(after) == {f"backbone.model.{name}" for name in before.state_dict()} | {"head.weight", "head.bias"}
    tensors = before.state_dict()
    moved = {name for name in tensors if not torch.equal(tensors[name], after[f"backbone.model.{name}"])}
    assert len(moved) >= 6  # residual branches of the CNN begin with a factor of 0, and learn from the next update on
    assert {name.rpartition(".")[0] for name in moved} <= learning
    if mode == "lora":  # matrices and kernels alone; a learning normalisation moves its bias and statistics, too
        assert all(name.endswith(".weight") for name in moved)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_merged_low_rank_updates_give_the_same_logits(toy_config, backbone):
    model = classifier(toy_config, mode="lora", backbone=backbone, lora_rank=3, lora_alpha=6.0)
    plain = classifier(toy_config, backbone=backbone)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))  # B is 0: nothing changed yet
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                assert parameter.requires_grad
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        config = toy_config(mode="lora", backbone=backbone, lora_rank=3, lora_alpha=6.0)
        moved = model(images)
        assert (moved - plain(images)).abs().max() > 1e-4
        plain.load_state_dict(plain_weights(model.state_dict(), config))
        torch.testing.assert_close(plain(images), moved, rtol=1e-4, atol=1e-6)


def test_building_a_model_leaves_the_generators_of_gpus_alone(toy_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    with pytest.raises(pytest.fail.Exception, match="seeded"):
        torch.manual_seed(0)
    classifier(toy_config, mode="lora")


def test_moving_average_by_hand_is_what_is_selected(toy_config, train, monkeypatch):
    """timm's warm-up: with n = updates - 1, the decay is 0 for n = 0 and else 1 - (1 + n)^(-2/3), at most ``ema``."""
    from trainer.distributed import Engine

    seen, update = [], Engine.update

    def watch(self, number):
        update(self, number)
        seen.append(self.module.head.weight.detach().clone())

    monkeypatch.setattr(Engine, "update", watch)
    config = toy_config(ema=0.5, epochs=2)
    train(config)
    average = seen[0]
    for n, weight in enumerate(seen[1:], 1):
        decay = min(1 - (1 + n) ** (-2 / 3), 0.5)
        average = decay * average + (1 - decay) * weight
    published = load_file(config.directory / "last.safetensors")["head.weight"]
    torch.testing.assert_close(published, average)
    assert not torch.equal(published, seen[-1])


def test_the_average_of_a_model_that_keeps_things_in_evaluation_mode_is_judged_as_it_is(
    toy_config, toy_cards, toy_sets, train, tmp_path
):
    """timm's TinyViT keeps its attention biases from one evaluation to the next, while the average moves on."""
    cards = tmp_path / "cards.yaml"
    cards.write_text(toy_cards.read_text().replace("test_vit", "tiny_vit_5m_224"))
    config = toy_config(cards=cards, ema=0.5, epochs=2.4, learning_rate=0.02, evaluate_every=0.8)
    rows = []
    selected = train(config, rows.append)["selected"]
    last = next(row for row in reversed(rows) if "validation/auc" in row)
    assert sum("validation/auc" in row for row in rows) > 2
    for checkpoint, row in (("best", selected), ("last", last)):
        scores = pd.read_parquet(score(config.directory, {"v": toy_sets["validation"]}, checkpoint)["v"])
        assert row["validation/auc"] == roc_auc_score(scores["label"], scores["logit"])
        loss = np.log1p(np.exp((1 - 2.0 * scores["label"]) * scores["logit"])).mean()
        assert row["validation/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "keys", [{"ema": 0.9}, {"mode": "lora"}, {"ema": 0.9, "mode": "lora", "backbone": "tiny_resnet"}]
)
def test_average_and_adapters_are_part_of_the_state(toy_config, train, keys):
    """A run stopped and resumed twice ends bit-equal to one that was not."""
    whole, config = toy_config(**keys, experiment="whole"), toy_config(**keys, experiment="stopped")
    train(whole)

    def stop(row):
        (config.directory / "stop").touch()

    for _ in range(2):
        with pytest.raises(Stopped):
            train(config, stop)
    train(config)
    for name in ("best", "last"):
        files = [(run.directory / f"{name}.safetensors").read_bytes() for run in (whole, config)]
        assert files[0] == files[1]
    rows = [json.loads((run.directory / "result.json").read_text())["selected"] for run in (whole, config)]
    assert rows[0] == {**rows[1], **{key: rows[0][key] for key in rows[0] if key.startswith(("speed", "memory"))}}


def test_label_smoothing_is_for_training_alone(toy_config, train):
    """Before anything is learned the head's weights are near 0 and so are the logits: log 2 with and without. With
    logits z, the smoothed loss is the plain one + epsilon/2 (2y - 1) z for the true sign of z: it differs."""
    rows = {0.0: [], 0.4: []}
    for smoothing, into in rows.items():
        train(toy_config(label_smoothing=smoothing, learning_rate=1e-30, log_every=1, epochs=0.4), into.append)
    plain, smooth = rows.values()
    assert plain[0]["train/loss"] != smooth[0]["train/loss"]
    assert plain[0]["train/loss"] == pytest.approx(smooth[0]["train/loss"], abs=0.02)
    assert plain[1]["validation/loss"] == smooth[1]["validation/loss"]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("option", ["gradient_checkpointing", "channels_last"])
def test_speed_and_memory_options_change_nothing_but_summation(toy_config, train, backbone, option):
    weights, mode = [], "lora" if backbone == "tiny_resnet" else "full"
    for value in (False, True):
        config = toy_config(backbone=backbone, mode=mode, epochs=0.8, **{option: value}, experiment=str(value))
        train(config)
        weights.append(load_file(config.directory / "last.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_training_is_the_same_training(toy_config, train):
    weights = []
    for value in (False, True):
        config = toy_config(mode="head", epochs=0.4, compile=value, experiment=str(value))
        train(config)
        weights.append(load_file(config.directory / "last.safetensors"))
    assert set(weights[0]) == set(weights[1])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-4)


def test_options_that_a_backbone_does_not_have_are_named(toy_config):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.num_features, self.model = 3, torch.nn.Identity()

    for mode in ("norm", "lora"):
        with pytest.raises(InputError, match=f"mode={mode}: this backbone has no"):
            freeze(Classifier(Bare(), seed=0), toy_config(mode=mode))
    with pytest.raises(InputError, match="twice in the statistics of this backbone's batch norms"):
        checkpoint_gradients(classifier(toy_config, backbone="tiny_resnet"))
    with pytest.raises(InputError, match="gradient_checkpointing=true: this backbone does not have it"):
        checkpoint_gradients(Classifier(Bare(), seed=0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: must be at least 0 and below 1"),
        ({"ema": 1.0}, "ema=1.0: must be at least 0 and below 1"),
        ({"lora_rank": 0}, "lora_rank=0: must be above 0"),
        ({"deepspeed_offload": True}, "deepspeed_offload=true needs deepspeed_stage=1, 2 or 3"),
        ({"ema": 0.9, "deepspeed_stage": 2}, "ema=0.9 needs deepspeed_stage=0"),
        ({"ema": 0, "deepspeed_stage": 2}, "ema=0.0 needs deepspeed_stage=0"),
        ({"compile": True, "deepspeed_stage": 1}, "compile=True needs deepspeed_stage=0"),
        ({"channels_last": True, "deepspeed_stage": 3}, "channels_last=True needs deepspeed_stage=0"),
    ],
)
def test_values_and_combinations_that_cannot_be(toy_config, wrong, message):
    with pytest.raises(InputError) as error:
        toy_config(**wrong)
    assert message in str(error.value)


def test_options_name_a_run_only_where_they_matter(toy_config):
    name = run_name(toy_config())
    for same in ({"lora_rank": 4}, {"lora_alpha": 1}, {"channels_last": True}, {"compile": True}, {"profile": True}):
        assert run_name(toy_config(**same)) == name
    assert len({run_name(toy_config(**keys)) for keys in ({}, {"ema": 0.9}, {"label_smoothing": 0.1})}) == 3
    lora = {run_name(toy_config(mode="lora", **keys)) for keys in ({}, {"lora_rank": 4}, {"lora_alpha": 1})}
    assert len(lora) == 3
