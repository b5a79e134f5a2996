"""The loop: schedules, loss, selection, modes, and that the numbers it logs are the right ones."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from timm.scheduler import CosineLRScheduler

from data_shards.command import InputError
from data_shards.manifest import ShardSet
from data_shards.order import SampleOrder
from trainer.begin import begin
from trainer.card import get_card
from trainer.classifier import Classifier, freeze
from trainer.config import FinetuneConfig, run_name
from trainer.loop import NonFiniteLoss, better, class_weights
from trainer.schedule import Schedule, learning_rate_schedule
from trainer.state import read_metrics
from trainer.validation import check_sets, merge_by_index

SPLITS = ("train", "validation")


def test_run_name_covers_what_changes_the_result_and_nothing_else(toy_config):
    name = run_name(toy_config())
    assert name.startswith("tiny_vit-random-full-s0-")
    assert len(name.rsplit("-", 1)[1]) == 8
    for same in (
        {"threads": 7},
        {"processes": 2},
        {"experiment": "x"},
        {"checkpoint_steps": 3},
        {"unfrozen_blocks": 5},
    ):
        assert run_name(toy_config(**same)) == name
    names = {
        run_name(toy_config(**keys)) for keys in ({}, {"seed": 1}, {"flip": False}, {"mode": "head"}, {"epochs": 5})
    }
    assert len(names) == 5
    assert run_name(toy_config(epochs=4.0, clip=1)) == name
    blocks = {run_name(toy_config(mode="last_blocks", unfrozen_blocks=k)) for k in (1, 2)}
    assert len(blocks) == 2


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"warmup": 1.5}, {"experiment": "a/b"}, {"seed": -1}, {"clip": 0}])
def test_a_value_out_of_range_is_named(toy_config, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        toy_config(**wrong)


def test_config_has_no_key_for_a_test_set():
    assert not [name for name in FinetuneConfig.__dataclass_fields__ if "test" in name or "unseen" in name]


def test_schedule_counts_samples():
    # 40 samples, batches of 16: 2.5 updates an epoch. 4 epochs are 10 updates; epochs 1, 2, 3, 4 are complete after
    # updates ceil(2.5) = 3, 5, ceil(7.5) = 8 and 10.
    schedule = Schedule(samples=40, batch_size=16, epochs=4, evaluate_every=1)
    assert schedule.steps == 10
    assert [step for step in range(1, 11) if schedule.evaluates(step)] == [3, 5, 8, 10]
    assert schedule.epoch(5) == 2.0
    # 0.1 epochs of 30 samples in batches of 3 is 1 update each; 0.1 has no exact double, so rounding must not skip one.
    fine = Schedule(samples=30, batch_size=3, epochs=1, evaluate_every=0.1)
    assert [step for step in range(1, 11) if fine.evaluates(step)] == list(range(1, 11))
    # An evaluation interval longer than the run: one evaluation, at the end.
    assert [s for s in range(1, 11) if Schedule(40, 16, 4, 100).evaluates(s)] == [10]


def test_learning_rate_warms_up_linearly_then_follows_a_cosine(toy_config):
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 1.0}], lr=0.3)
    rate = learning_rate_schedule(optimizer, toy_config(learning_rate=0.3, warmup=0.2), 10)
    # W = 0.2 x 10 = 2 warm-up updates: 0.3 x 1/3 and 0.3 x 2/3; then 0.3 (1 + cos(pi t / 8)) / 2 with t = 0 ... 7.
    expected = [0.1, 0.2, *(0.15 * (1 + math.cos(math.pi * t / 8)) for t in range(8))]
    assert [rate(step) for step in range(10)] == pytest.approx(expected)
    assert rate(1) == pytest.approx(0.2)  # of the step alone: any order gives the same
    assert learning_rate_schedule(optimizer, toy_config(learning_rate=0.3, warmup=1.0), 1)(0) == pytest.approx(0.3)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 7), (0.05, 333), (0.2, 40), (1.0, 9), (0.5, 1)])
def test_learning_rate_is_timms_to_the_last_bit(toy_config, warmup, steps):
    peak, scales = 3e-4, (1.0, 0.2, 0.2**7)
    rising = min(round(warmup * steps), steps - 1)
    ours, theirs = (
        torch.optim.SGD(
            [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": each} for each in scales], lr=peak
        )
        for _ in range(2)
    )
    rate = learning_rate_schedule(ours, toy_config(learning_rate=peak, warmup=warmup), steps)
    timms = CosineLRScheduler(
        theirs,
        steps - rising,
        warmup_t=rising,
        warmup_lr_init=peak / (rising + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(steps):
        assert rate(step) == ours.param_groups[0]["lr"]
        timms.step_update(step)
        assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]


def test_class_weights_by_hand():
    # 1 real and 3 fake: 4 / (2 x 1) = 2 and 4 / (2 x 3) = 2/3. Mean over samples: (2 + 3 x 2/3) / 4 = 1.
    assert class_weights(np.array([0, 1, 1, 1]), balance=True) == pytest.approx((2, 2 / 3))
    assert class_weights(np.array([0, 1, 1, 1]), balance=False) == (1, 1)


def test_merge_by_index_needs_each_sample_once():
    parts = [(np.array([2, 0]), np.array([0.5, -1.0])), (np.array([1]), np.array([3.0]))]
    assert merge_by_index(parts, 3).tolist() == [-1.0, 3.0, 0.5]
    for wrong in (parts[:1], [*parts, parts[1]]):
        with pytest.raises(RuntimeError, match="evaluation covered"):
            merge_by_index(wrong, 3)


def test_sets_that_may_not_train_or_select(toy_sets, tmp_path):
    from data_shards.pack import pack

    train, validation, test = (ShardSet.open(toy_sets[name]) for name in ("train", "validation", "test"))
    check_sets(train, validation)
    with pytest.raises(InputError, match="is a test split; training and selection may not see it"):
        check_sets(train, test)
    with pytest.raises(InputError, match="group 'train0' is in both"):
        check_sets(train, train)
    root = toy_sets["train"].parents[1]
    real = [{"path": f"train-{i}.jpg", "label": "real", "method": "pristine", "group": "a|b"} for i in (0, 2)]
    fake = [{"path": "train-1.jpg", "label": "fake", "method": "stripes", "group": "b|c"}]
    tied = [pd.DataFrame([{**row, "dataset": "toy", "split": split} for row in (*real, *fake)]) for split in SPLITS]
    sets = [ShardSet.open(pack(t, root, tmp_path / s, workers=1)[s]) for t, s in zip(tied, SPLITS, strict=True)]
    with pytest.raises(InputError, match="group 'a' is in both"):
        check_sets(*sets)


def test_selection_is_by_auc_then_loss_then_earlier():
    row = {"validation/auc": 0.8, "validation/loss": 0.5}
    assert better(row, None)
    assert better({**row, "validation/auc": 0.9, "validation/loss": 9.0}, row)
    assert better({**row, "validation/loss": 0.4}, row)
    assert not better(dict(row), row)
    assert not better({**row, "validation/auc": 0.7, "validation/loss": 0.1}, row)


class Stack(torch.nn.Module):
    """A backbone of a stem with batch norm and two linear blocks."""

    def __init__(self):
        super().__init__()
        self.num_features = 4
        self.stem = torch.nn.BatchNorm2d(3)
        self.one, self.two = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)

    def blocks(self):
        names = {"stem": [], "one": [], "two": []}
        for name, _ in self.named_parameters():
            names[name.split(".")[0]].append(name)
        return list(names.items())

    def forward(self, images):
        return self.two(self.one(self.stem(images).mean(dim=(2, 3))))


@pytest.mark.parametrize(
    ("mode", "blocks", "learning"),
    [
        ("head", 1, set()),
        ("last_blocks", 1, {"two"}),
        ("last_blocks", 2, {"one", "two"}),
        ("full", 1, {"stem", "one", "two"}),
    ],
)
def test_modes_choose_what_learns_and_what_keeps_its_statistics(toy_config, mode, blocks, learning):
    model = Classifier(Stack(), seed=0)
    freeze(model, toy_config(mode=mode, unfrozen_blocks=blocks))
    model.train()
    found = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad and "backbone" in name}
    assert found == learning
    assert all(p.requires_grad for p in model.head.parameters())
    assert model.backbone.stem.training == (mode == "full")
    with pytest.raises(InputError, match="has 3 blocks"):
        freeze(model, toy_config(mode="last_blocks", unfrozen_blocks=4))


@pytest.mark.parametrize("backbone", ["tiny_vit", "tiny_resnet"])
@pytest.mark.parametrize("mode", ["head", "last_blocks", "full"])
def test_what_is_frozen_stays_bit_equal(toy_config, train, backbone, mode):
    from trainer.backbones import create_backbone

    config = toy_config(backbone=backbone, mode=mode, epochs=0.8, weight_decay=0.1)
    train(config)
    before = create_backbone(get_card(backbone, config.cards), initialisation="random", seed=0)
    learning = {"head": [], "last_blocks": before.blocks()[-1:], "full": before.blocks()}[mode]
    names = {name for _, parameters in learning for name in parameters}
    frozen = {name: tensor for name, tensor in before.state_dict().items() if name not in names}
    if mode != "head":  # the running statistics of a learning block are its own
        learning_modules = {name.rpartition(".")[0] for name in names}
        frozen = {name: tensor for name, tensor in frozen.items() if name.rpartition(".")[0] not in learning_modules}
    after = load_file(config.directory / "last.safetensors")
    for name, tensor in frozen.items():
        assert torch.equal(tensor, after[f"backbone.{name}"]), name
    moved = [name for name in names if not torch.equal(before.state_dict()[name], after[f"backbone.{name}"])]
    assert bool(moved) == (mode != "head")
    assert after["head.bias"].item() != 0


@pytest.mark.parametrize("backbone", ["tiny_vit", "tiny_resnet"])
def test_fit_learns_and_logs_what_it_did(toy_config, train, toy_sets, backbone):
    from trainer.predict import load_run

    rows = []
    config = toy_config(backbone=backbone, epochs=8, flip=False)
    result = train(config, rows.append)
    assert result["selected"]["validation/auc"] > 0.9
    assert read_metrics(config.directory) == rows
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if "validation/auc" in row] == [3, 5, 8, 10, 13, 15, 18, 20]
    assert result["steps"] == 20
    assert result["epoch"] == 8.0
    assert result == json.loads((config.directory / "result.json").read_text())
    assert not (config.directory / "state").exists()
    # The metrics of the selected row are those of the selected weights.
    model, card, _ = load_run(config.directory)
    validation = ShardSet.open(toy_sets["validation"])
    logits = _logits(model, card, validation)
    labels = validation.labels
    assert result["selected"]["validation/auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    # Balanced classes weigh 1 each: the plain cross-entropy, log(1 + exp(-s x)) with s = 1 for fake and -1 for real.
    loss = np.log1p(np.exp(-(2.0 * labels - 1) * logits)).mean()
    assert result["selected"]["validation/loss"] == pytest.approx(loss, rel=1e-5)
    assert result["selected"]["validation/n"] == 22


def _logits(model, card, shards):
    from data_shards.loader import evaluation_batches
    from trainer.preprocess import normalize

    batches = evaluation_batches(shards, batch_size=len(shards), image_size=card.input_size)
    with torch.no_grad():
        return model(normalize(next(iter(batches)).images, card)).numpy().astype(np.float64)


def test_accumulation_changes_nothing_but_summation(toy_config, train):
    weights = []
    for accumulation in (1, 4):
        config = toy_config(epochs=1.2, accumulation=accumulation)
        train(config)
        weights.append(load_file(config.directory / "last.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])  # those of DeepSpeed with bf16
def test_logits_are_products_in_float32_also_with_bf16(toy_config, weights):
    config = toy_config(precision="bf16")
    model = begin(config, get_card(config.backbone, config.cards), distributed=False).model.eval().to(weights)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(weights)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        features = model.backbone(images)
        logits = model(images)
    assert features.dtype is weights or features.dtype is torch.bfloat16
    assert logits.dtype is torch.float32
    assert torch.equal(logits, features.float() @ model.head.weight[0].float() + model.head.bias.float())
    assert len(logits.unique()) == 64 > len(logits.bfloat16().unique())


def test_bf16_trains(toy_config, train):
    result = train(toy_config(precision="bf16", epochs=8, flip=False))
    assert result["selected"]["validation/auc"] > 0.9


def test_patience_counts_evaluations_without_a_higher_auc(toy_config, train):
    # Nothing moves the ranking at this learning rate: the first evaluation is the best one, two more are waited for.
    result = train(toy_config(learning_rate=1e-30, patience=2))
    assert result["stopped_early"]
    assert result["steps"] == 8
    assert result["selected_step"] == 3


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_samples(toy_config, train, toy_sets):
    # The first update moves every weight by about 1e37, so that the second forward pass overflows.
    config = toy_config(learning_rate=1e37, warmup=0, clip=None, checkpoint_steps=1)
    with pytest.raises(NonFiniteLoss, match="at step 2 for samples"):
        train(config)
    report = json.loads((config.directory / "non-finite-0.json").read_text())
    shards = ShardSet.open(toy_sets["train"])
    second, _ = SampleOrder([shard["samples"] for shard in shards.shards], config.seed, shards.digest).take(16, 32)
    assert report["keys"] == [str(key) for key in shards.column("key")[second]]
    saved = json.loads((config.directory / "state" / "step-00000001" / "state.json").read_text())
    assert saved["progress"]["step"] == 1


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_update(toy_config, train, monkeypatch, clip):
    """Though the loss is finite, and also when nothing is clipped."""
    from trainer.distributed import Engine

    backward = Engine.backward
    monkeypatch.setattr(Engine, "backward", lambda self, loss, *, last: backward(self, loss * float("inf"), last=last))
    with pytest.raises(NonFiniteLoss, match="not finite at step 1 in a batch with"):
        train(toy_config(clip=clip))


def test_batch_size_must_fit(toy_config, train):
    with pytest.raises(InputError, match="batch_size=16 is no multiple of 1 processes x accumulation=3"):
        train(toy_config(accumulation=3))
