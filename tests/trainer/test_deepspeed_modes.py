"""The engine is the one that was asked for, or there is none; and the stage of ZeRO that no other test launches."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer.distributed import Engine, LaunchError, deepspeed_config

CPU = torch.device("cpu")


class DeepSpeedEngine(nn.Module):
    """What an engine tells of itself."""

    def __init__(self, module: nn.Module, stage: int, world_size: int) -> None:
        super().__init__()
        self.module, self.stage, self.world_size = module, stage, world_size

    def zero_optimization_stage(self) -> int:
        return self.stage


class DistributedDataParallel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def accelerator(wrap, world: int) -> SimpleNamespace:
    """An Accelerator whose ``prepare`` makes of a model what it likes."""

    def prepare(model, *optimizer):
        return (wrap(model), *optimizer) if optimizer else wrap(model)

    return SimpleNamespace(
        prepare=prepare, num_processes=world, device=CPU, is_main_process=True, process_index=0, state=None
    )


@pytest.fixture
def build(toy_config):
    """Function (wrap, world, stage) → Engine over a tiny model."""
    from trainer.begin import begin
    from trainer.card import get_card

    def make(wrap, world: int, stage: int) -> Engine:
        config = toy_config(deepspeed_stage=stage)
        model = begin(config, get_card(config.backbone, config.cards), distributed=True).model
        return Engine(accelerator(wrap, world), config, model)

    return make


@pytest.mark.parametrize(
    ("wrap", "stage", "found"),
    [
        (DistributedDataParallel, 2, "DistributedDataParallel False"),  # Accelerate's silent fallback
        (lambda model: model, 3, "Classifier False"),
        (lambda model: DeepSpeedEngine(model, 1, 2), 2, "DeepSpeedEngine 1"),  # another stage
        (lambda model: DeepSpeedEngine(model, 2, 1), 2, "DeepSpeedEngine 2"),  # each process in a world of its own
    ],
)
def test_another_engine_than_the_one_asked_for_is_refused(build, wrap, stage, found):
    with pytest.raises(LaunchError, match=f"DeepSpeed ZeRO-{stage} on 2 processes was asked for; got {found}"):
        build(wrap, 2, stage)


@pytest.mark.parametrize(("wrap", "world"), [(lambda model: model, 2), (DistributedDataParallel, 1)])
def test_plain_training_is_distributed_where_and_only_where_there_are_several(build, wrap, world):
    with pytest.raises(LaunchError, match="is not DistributedDataParallel"):
        build(wrap, world, 0)


def test_the_engine_that_was_asked_for_is_taken(build):
    assert build(DistributedDataParallel, 2, 0).stage == 0
    assert build(lambda model: DeepSpeedEngine(model, 2, 2), 2, 2).stage == 2


@pytest.mark.parametrize(("stage", "precision", "found"), [(1, "bf16", None), (2, "bf16", "fp32"), (3, "fp32", None)])
def test_gradients_are_added_up_in_float32_where_deepspeed_can(toy_config, stage, precision, found):
    config = toy_config(deepspeed_stage=stage, precision=precision)
    assert deepspeed_config(config, 16)["data_types"].get("grad_accum_dtype") == found


@pytest.mark.slow
@pytest.mark.compiler
def test_zero_1_on_two_processes_trains_as_one(toy_config, train, launch):
    """Optimizer state alone in parts. Three updates, an evaluation, published weights."""
    keys = {"epochs": 1.2, "log_every": 1, "mode": "last_blocks", "accumulation": 2}
    alone = toy_config(**keys, experiment="alone")
    train(alone)
    config = toy_config(**keys, experiment="zero-1", deepspeed_stage=1)
    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    assert json.loads((config.directory / "result.json").read_text())["deepspeed_stage"] == 1
    weights, expected = (load_file(run.directory / "last.safetensors") for run in (config, alone))
    for name, tensor in expected.items():  # rounding, which AdamW's division magnifies; an update moves by up to 1e-3
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-4, msg=lambda m, name=name: name + m)
