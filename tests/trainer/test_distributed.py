"""The engine's parts that real launches on a CPU do not reach, or reach slowly."""

from types import SimpleNamespace

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn

from data_shards.command import InputError
from trainer.begin import begin
from trainer.card import get_card
from trainer.distributed import Engine, build_accelerator
from trainer.state import load_engine, save_engine


class DistributedDataParallel(nn.Module):
    """Wraps like torch's, and needs no process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture
def cards(tmp_path, toy_cards):
    """Function (architecture) → cards file in which ``tiny_vit`` is another architecture."""

    def of(architecture: str, **keys: str):
        more = "".join(f", {key}: {value}" for key, value in keys.items())
        file = tmp_path / "cards.yaml"
        file.write_text(toy_cards.read_text().replace("architecture: test_vit", f"architecture: {architecture}{more}"))
        return file

    return of


def test_batch_norm_across_gpus_keeps_its_activation(toy_config, cards):
    config = toy_config(cards=cards("tf_efficientnet_lite0"), mode="full")
    model = begin(config, get_card(config.backbone, config.cards), distributed=True).model.eval()
    assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
    gpus = SimpleNamespace(num_processes=2, device=torch.device("cuda"), prepare=DistributedDataParallel)
    converted = Engine(gpus, config, model).module.eval()
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {isinstance(norm, nn.SyncBatchNorm) for norm in norms} == {True}
    with torch.no_grad():
        assert torch.equal(converted(images), before)


def engine_after_updates(config, *, distributed: bool, updates: int = 2) -> Engine:
    """An engine of one process, with the model that one of several processes has, if ``distributed``."""
    card = get_card(config.backbone, config.cards)
    engine = Engine(build_accelerator(config), config, begin(config, card, distributed=distributed).model)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for number in range(1, updates + 1):
        engine.backward(engine.forward(images).square().mean(), last=True)
        engine.update(number)
    return engine


def moments(engine: Engine) -> dict[str, torch.Tensor]:
    names, state = list(engine.parameters), engine.optimizer.state_dict()["state"]
    return {names[number]: entries["exp_avg"] for number, entries in state.items()}


@pytest.mark.parametrize("distributed", [True, False])
def test_optimizer_state_finds_its_parameters_whatever_is_frozen(toy_config, cards, tmp_path, distributed):
    """Several processes freeze what the loss does not reach, one does not: parameters then have other numbers."""
    config = toy_config(cards=cards("test_vit3", layer="average"))
    saved = engine_after_updates(config, distributed=distributed)
    other = engine_after_updates(config, distributed=not distributed, updates=0)
    assert len(saved.parameters) != len(other.parameters)
    save_engine(saved, tmp_path)
    load_engine(other, tmp_path)
    assert moments(other).keys() == moments(saved).keys()
    for name, moment in moments(saved).items():
        assert torch.equal(moments(other)[name], moment), name


def test_a_state_by_numbers_is_refused(toy_config, tmp_path):
    engine = engine_after_updates(toy_config(), distributed=False)
    save_engine(engine, tmp_path)
    file = tmp_path / "optimizer.safetensors"
    save_file({f"{n}.step": tensor for n, tensor in enumerate(load_file(file).values())}, file)
    with pytest.raises(InputError, match="saved by another version of this software"):
        load_engine(engine, tmp_path)


@pytest.mark.parametrize("stage", [0, 2])
def test_processes_wait_for_hours_of_work_on_rank_zero(toy_config, monkeypatch, stage):
    asked = {}
    monkeypatch.setattr(
        accelerate, "Accelerator", lambda **keys: asked.update(keys) or SimpleNamespace(num_processes=1)
    )
    monkeypatch.setenv("LOCAL_RANK", "0")
    build_accelerator(toy_config(deepspeed_stage=stage))
    (group,) = asked["kwargs_handlers"]
    assert group.timeout.total_seconds() >= 6 * 3600
