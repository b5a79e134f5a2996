"""The engine's parts that real launches on a CPU do not reach, or reach slowly."""

from types import SimpleNamespace

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from trainer.begin import begin
from trainer.card import get_card
from trainer.distributed import Engine


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
