"""The real fit in float64, as a script for a launcher: only then can sums over other numbers of processes be compared
beyond doubt. Run as ``in_double.py --config FILE.yaml key=value``."""

import sys

import torch

import trainer.begin
import trainer.loop
from data_shards.command import parse
from trainer.classifier import Classifier
from trainer.config import FinetuneConfig
from trainer.distributed import build_accelerator, close


class Double(Classifier):
    """The classifier, in float64 from the pixels to the logits."""

    def __init__(self, *arguments, **keys) -> None:
        super().__init__(*arguments, **keys)
        self.double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images.double()))


def fit_in_double(config: FinetuneConfig) -> None:
    torch.set_num_threads(1)
    trainer.begin.Classifier = Double
    accelerator = build_accelerator(config)
    trainer.loop.fit(config, accelerator)
    close(accelerator)


if __name__ == "__main__":
    fit_in_double(parse(FinetuneConfig, sys.argv[1:]))
