"""The experiment file: which backbones, on which shard sets, fine-tuned how."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_shards.command import InputError, to_dict
from data_shards.files import digest
from jobs.resources import Resources

if TYPE_CHECKING:
    from evaluation.arrays import Compute


@dataclass(frozen=True)
class Backbone:
    """One backbone of the experiment: a card's name, pre-trained or as a random-initialisation control."""

    name: str
    initialisation: Literal["pretrained", "random"] = "pretrained"
    finetune: dict[str, Any] = field(default_factory=dict)
    """Keys of trainer.config.FinetuneConfig for this backbone; they win over the experiment's."""
    seeds: list[int] | None = None
    """Fine-tuning seeds of this backbone instead of the experiment's: more of them for the small ones; [] for one whose
    frozen features alone are of interest, such as a control."""
    resources: Resources = field(default_factory=Resources)
    """What its rows ask of a scheduler; what is given here wins over the experiment's."""

    @property
    def label(self) -> str:
        return self.name if self.initialisation == "pretrained" else f"{self.name}-random"


@dataclass
class Data:
    """Shard sets by role. Training and model selection see ``train`` and ``validation`` only."""

    train: Path
    validation: Path
    test: Path
    unseen: dict[str, Path] = field(default_factory=dict)
    """Shard sets of datasets that took no part in training, by name."""

    def by_name(self) -> dict[str, Path]:
        """All shard sets in the order of the tables: train, validation, test, then the unseen ones."""
        return {"train": self.train, "validation": self.validation, "test": self.test, **self.unseen}


@dataclass
class Experiment:
    """What the benchmark runs, and where its results lie."""

    name: str
    title: str
    notice: str
    """What the data is and what may not be concluded; printed at the top of the report."""
    data: Data
    backbones: list[Backbone]
    finetune: dict[str, Any] = field(default_factory=dict)
    """Keys of trainer.config.FinetuneConfig shared by all rows of the plan."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Fine-tuning seeds: one row of the plan for each backbone and seed."""
    subgroups: list[str] = field(default_factory=list)
    """Further columns of the face tables (compression, age …): test and unseen AUC within each of their values."""
    resources: Resources = field(default_factory=Resources)
    """What every row asks of a scheduler; without effect on one machine."""
    gpu_memory_gb: float | None = None
    """Memory of one GPU of the cluster. With it, rows that do not say how many GPUs they want get as many as their
    weights, optimizer state and activations need (jobs.resources)."""
    gpus_per_node: int = 8
    """With gpu_memory_gb: a row that needs more takes several nodes."""
    processes: int = 1
    """Processes of one fine-tuning run on this machine (GPUs, or CPU processes over gloo)."""
    replicates: int = 1000
    """Bootstrap replicates behind every interval."""
    runs: Path = Path("runs")
    cards: Path | None = None
    """YAML file with the user's own backbone cards."""
    weights_dir: Path | None = None
    """Folder with weights.json: local weights instead of the hub or package registry."""
    tracking_uri: str | None = None
    """MLflow tracking server or database; default: SQLite file runs/mlflow.db."""
    feature_batch_size: int = 32
    layers: bool = False
    """Also the headline separability of every layer, from stem to head."""
    device: str = "cpu"
    """Where pairwise distances of the separability scores are computed: cpu, or a torch device such as cuda."""
    chunk: int = 0
    """Distances held at a time by each backbone that is scored, which bounds memory; 0: those of 256 samples, and at
    least 4 million on a CPU."""
    nuisances: list[str] = field(default_factory=list)
    """Columns of the face tables that may come along with the label, such as a source; held against the features
    beside brightness, sharpness, compression, resolution and data set."""
    umap: bool = False
    """Also a UMAP picture beside PCA and t-SNE; needs the extra: pip install 'model-separability[umap]'."""
    show_faces: bool = False
    """Put small pictures of the faces into the report. Only where the data's licence lets the report be passed on."""

    def __post_init__(self) -> None:
        labels = [backbone.label for backbone in self.backbones]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise InputError(f"experiment {self.name!r} lists backbone {twice[0]!r} twice; remove one")
        if not labels:
            raise InputError(f"experiment {self.name!r} has no backbones; list at least one under 'backbones'")
        if re.search(r"://[^/\s@]*:[^/\s@]+@|[?&](\w*passw(or)?d|pwd)=", self.tracking_uri or "", re.I):
            raise InputError(
                "tracking_uri holds a password, which plan and logs would show; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or for a database a file ~/.pgpass"
            )
        taken = {"train", "validation", "test"} & set(self.data.unseen)
        if taken:
            raise InputError(f"unseen data set may not be called {taken.pop()!r}; choose another name")

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def compute(self) -> Compute:
        from evaluation.arrays import Compute  # NumPy: not for --help

        return Compute(self.device, self.chunk)

    @property
    def separability_sets(self) -> dict[str, Path]:
        """Separability is a property of frozen features: measured on the training split, which leaves test untouched
        for whoever selects a backbone by it, and on each unseen set."""
        return {"train": self.data.train, **self.data.unseen}

    @property
    def tracking(self) -> str:
        return self.tracking_uri or f"sqlite:///{(self.runs / 'mlflow.db').resolve()}"

    @property
    def digest(self) -> str:
        return digest(to_dict(self))
