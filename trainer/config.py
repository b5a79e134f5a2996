"""The configuration of one fine-tuning run, and the run's name, which comes from it and from nothing else."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_shards.command import InputError, to_dict
from data_shards.files import digest

WITHOUT_EFFECT = (
    "threads",
    "processes",
    "runs",
    "experiment",
    "cards",
    "weights_dir",
    "train_subset",
    "log_every",
    "checkpoint_minutes",
    "checkpoint_steps",
    "gradient_checkpointing",
    "channels_last",
    "compile",
    "deepspeed_stage",
    "deepspeed_offload",
    "features",
    "profile",
)
"""Fields that do not change what comes out, up to rounding: a run may be resumed with other values."""

ONLY_WITH_MODE = {"unfrozen_blocks": "last_blocks", "lora_rank": "lora", "lora_alpha": "lora"}
"""Fields that mean something in one mode only."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune one backbone for real/fake detection. There is no key for a test set: selection sees validation only.

    Launch: accelerate launch trainer/finetune.py --config FILE.yaml key=value. The same command again resumes a run,
    or says that it is finished.
    """

    backbone: str
    """Name of a backbone card."""
    train: Path
    """Shard set to learn from."""
    validation: Path
    """Shard set that selects the checkpoint and stops early."""
    initialisation: Literal["pretrained", "random"] = "pretrained"
    """``random`` is the control: the same architecture without its pre-training."""
    mode: Literal["head", "last_blocks", "full", "lora", "norm"] = "full"
    """What learns: the head alone, or with it the last blocks, everything, low-rank updates of all linear and
    convolution layers (LoRA), or the normalisation layers."""
    unfrozen_blocks: int = 1
    """With mode=last_blocks: how many blocks learn, counted from the head."""
    lora_rank: int = 8
    """With mode=lora: rank of the updates."""
    lora_alpha: float = 16.0
    """With mode=lora: an update is multiplied by lora_alpha / lora_rank."""
    features: Path | None = None
    """With mode=head: folder of cached features. The backbone sees each picture once, and the head trains on what it
    gave, in seconds; needs flip=false, augmentation=0, mixup=0. null: the backbone sees each picture in every epoch."""
    epochs: float = 10.0
    """Training length: samples seen divided by training samples."""
    batch_size: int = 32
    """Samples of one update over all processes and accumulation steps."""
    learning_rate: float = 1e-4
    """Peak learning rate, for the global batch: the number of processes does not scale it."""
    layer_decay: float = 1.0
    """The head learns at learning_rate, the k-th block from it at learning_rate x layer_decay^k. Below 1, a new head
    learns fast while pre-trained blocks move little."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only: biases, normalisation and what timm exempts (position embeddings) are spared."""
    warmup: float = 0.1
    """Share of all updates with a linearly rising learning rate; a cosine to 0 follows."""
    accumulation: int = 1
    """Forward passes that make up one update; saves memory, changes nothing else (batch norm aside)."""
    clip: float | None = 1.0
    """Largest gradient norm; null: no clipping."""
    drop_path: float = 0.0
    """Stochastic depth rate of the architecture."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: bfloat16 autocast (with DeepSpeed: bfloat16 weights and float32 master weights)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    channels_last: bool = False
    """Memory layout of images and kernels that is faster for most convolutional networks."""
    compile: bool = False
    """Compile the training pass (torch.compile): takes a minute or more at the start, and needs a C++ compiler."""
    flip: bool = True
    """Mirror half of the training images."""
    augmentation: float = 0.0
    """Strength, 0 to 1, of random brightness, contrast, colour cast, blur, down-scaling, noise and JPEG compression of
    training images."""
    mixup: float = 0.0
    """Train on blends of two pictures and their targets, with shares from Beta(mixup, mixup); 0: none. Usual: 0.2."""
    class_balance: bool = True
    """Weight the loss so that real and fake count equally."""
    label_smoothing: float = 0.0
    """Training targets are label_smoothing / 2 and 1 - label_smoothing / 2 instead of 0 and 1."""
    ema: float | None = None
    """Decay per update of an exponential moving average of the weights, with timm's warm-up: the averaged weights are
    then what is evaluated, selected and published; null: none."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on the validation set."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better validation AUC; null: never."""
    seed: int = 0
    deepspeed_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; 0: plain DistributedDataParallel. A run may go on with another one."""
    deepspeed_offload: bool = False
    """Keep DeepSpeed's optimizer state, and with stage 3 the weights, in the memory of the CPU."""
    threads: int = 2
    """Decoding threads of each process."""
    on_bad: Literal["raise", "skip"] = "raise"
    """What a damaged training picture does: it ends the run, or it is left out, counted and logged. Damage in the
    validation set and in what becomes cached features always ends it: there every sample must have its score."""
    max_bad_share: float = 0.001
    """With on_bad=skip: a larger share of different damaged pictures in the training set ends the run all the same."""
    processes: int | None = None
    """How many processes the launch must give; trainer.launch sets it, since Accelerate may start fewer silently."""
    runs: Path = Path("runs")
    experiment: str = "default"
    """The run directory is RUNS/EXPERIMENT/RUN."""
    cards: Path | None = None
    """YAML file with further backbone cards."""
    weights_dir: Path | None = None
    """Folder with local weights, instead of the hub or package registry."""
    train_subset: int = 512
    """Training samples that every evaluation scores without augmentation, for the gap to validation."""
    log_every: int = 10
    """Updates between two training rows of metrics.jsonl."""
    checkpoint_minutes: float = 10.0
    """Minutes between two saved states."""
    checkpoint_steps: int | None = None
    """Save the state also after every so many updates; null: by time only."""
    profile: bool = False
    """Print once how long the first update took to come, from the start of the command, and why."""

    def __post_init__(self) -> None:
        for field in fields(self):  # 8 and 8.0, or "data" and "data/", are one value and must give one name
            value, kind = getattr(self, field.name), field.type.removesuffix(" | None")
            if value is not None and kind in ("float", "Path"):
                object.__setattr__(self, field.name, float(value) if kind == "float" else Path(value))
        positive = ("epochs", "batch_size", "learning_rate", "accumulation", "clip", "evaluate_every", "patience")
        modes = ("unfrozen_blocks", "lora_rank", "lora_alpha")
        counts = ("threads", "processes", "train_subset", "log_every", "checkpoint_steps")
        for name in (*positive, *modes, *counts):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}={value}: must be above 0")
        for name in ("weight_decay", "mixup", "seed", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay={self.layer_decay}: must be above 0 and at most 1")
        for name in ("label_smoothing", "ema"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be at least 0 and below 1")
        for name in ("warmup", "augmentation", "drop_path", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be from 0 to 1")
        if not self.experiment or Path(self.experiment).name != self.experiment:
            raise InputError(f"experiment={self.experiment!r}: must be a plain folder name")
        self._check_deepspeed()
        self._check_features()

    def _check_deepspeed(self) -> None:
        """DeepSpeed replaces parts of the training step, and some options belong to those that it replaces."""
        if self.deepspeed_offload and not self.deepspeed_stage:
            raise InputError("deepspeed_offload=true needs deepspeed_stage=1, 2 or 3")
        for name in ("ema", "channels_last", "compile"):
            value = getattr(self, name)
            if value is not None and value is not False and self.deepspeed_stage:  # ema=0 is an average, too
                raise InputError(f"{name}={value} needs deepspeed_stage=0; drop one of the two")

    def _check_features(self) -> None:
        """Features that are computed once must be the same in every epoch."""
        if self.features is None:
            return
        needed = {"mode": "head", "flip": False, "augmentation": 0.0, "mixup": 0.0, "deepspeed_stage": 0}
        needed["on_bad"] = "raise"
        needed |= dict.fromkeys(("gradient_checkpointing", "channels_last", "compile"), False)
        for name, value in needed.items():
            if getattr(self, name) != value:
                shown = str(value).lower() if isinstance(value, bool) else value
                raise InputError(f"features={self.features} needs {name}={shown}, not {getattr(self, name)}")

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.runs) / self.experiment / run_name(self)

    def rank_batch(self, processes: int) -> int:
        """Samples of one update on each process; InputError unless all processes and passes get the same number."""
        if self.batch_size % (processes * self.accumulation):
            raise InputError(
                f"batch_size={self.batch_size} is no multiple of {processes} processes x accumulation="
                f"{self.accumulation}; choose one that is"
            )
        if self.mixup and self.batch_size // (processes * self.accumulation) % 2:
            raise InputError(
                f"mixup={self.mixup} blends pairs: batch_size={self.batch_size} must be a multiple of 2 x {processes} "
                f"processes x accumulation={self.accumulation}"
            )
        return self.batch_size // processes


def result_fields(config: FinetuneConfig) -> dict[str, Any]:
    """The fields that determine the result, as plain values."""
    fields = {key: value for key, value in to_dict(config).items() if key not in WITHOUT_EFFECT}
    unused = [name for name, mode in ONLY_WITH_MODE.items() if config.mode != mode]
    unused += ["max_bad_share"] if config.on_bad == "raise" else []
    return {key: value for key, value in fields.items() if key not in unused}


def run_name(config: FinetuneConfig) -> str:
    """``BACKBONE[-random]-MODE-sSEED-DIGEST8``: the same for the same config on every machine and at every time.

    Fields at their defaults are not in the digest, so that a new field whose default is the old behaviour leaves the
    names of finished runs alone. Whoever changes a default raises DEFAULTS.
    """
    control = "-random" if config.initialisation == "random" else ""
    given = {key: value for key, value in result_fields(config).items() if value != _DEFAULTS.get(key, _MISSING)}
    return f"{config.backbone}{control}-{config.mode}-s{config.seed}-{digest([DEFAULTS, given])[:8]}"


DEFAULTS = 2
"""Version of the default values above, and of what they do."""
_MISSING = object()
_DEFAULTS = {
    item.name: item.default for item in dataclasses.fields(FinetuneConfig) if item.default is not dataclasses.MISSING
}
