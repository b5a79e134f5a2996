"""The sweep file, the trials that it stands for, and which of them have begun."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_shards.command import InputError, nearest
from data_shards.files import atomic
from jobs import plan, trial
from jobs.experiment import Backbone, Data, Experiment
from jobs.search import Range, Space, Values, grid, parse_space, random_draws
from jobs.subset import KEYS, Subset, take


@dataclass
class Sweep:
    """Search hyperparameters per backbone, to see where each one starts to memorise."""

    name: str
    data: Data
    backbones: list[Backbone]
    space: dict[str, Any]
    """Keys of trainer.config.FinetuneConfig, each with a list of values to try or a range {low, high, log: true};
    train_groups and flipped_labels (see jobs.subset), each with a list."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """Every combination, independent draws, or Optuna's TPE, which aims at a high validation AUC."""
    trials: int | None = None
    """Trials per backbone with sampler=random or tpe."""
    budget: dict[str, int] = field(default_factory=dict)
    """Trials of single backbones, by label, instead of ``trials``."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """asha stops trials that do worse on validation; pbt lets them go on from a better one's state with other
    hyperparameters (see jobs.population). The study of overfitting wants full curves: none."""
    seed: int = 0
    """Of the sampler; the seed of training is a key of finetune or space."""
    title: str = "Overfitting sweep"
    notice: str = ""
    """What the data is and what may not be concluded; printed at the top of the report."""
    finetune: dict[str, Any] = field(default_factory=dict)
    """Keys of trainer.config.FinetuneConfig shared by all trials."""
    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    replicates: int = 1000
    """Bootstrap replicates behind every interval."""
    runs: Path = Path("runs")
    cards: Path | None = None
    weights_dir: Path | None = None
    tracking_uri: str | None = None
    """MLflow tracking server or database; default: SQLite file runs/mlflow.db."""
    address: str | None = None
    """Ray cluster to join; default: Ray is started here, for this sweep."""

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def budgets(self) -> list[int]:
        """Trials of each backbone with sampler=random or tpe."""
        return [self.budget.get(backbone.label, self.trials or 0) for backbone in self.backbones]

    @property
    def head_only(self) -> bool:
        """Whether all trials train heads on frozen features."""
        return self.finetune.get("features") is not None or any("features" in b.finetune for b in self.backbones)

    @property
    def place(self) -> trial.Place:
        return trial.Place(self.folder / "data" / "features", self.data.train)


@dataclass(frozen=True)
class Trial:
    """A proposal and the fine-tuning run that it stands for."""

    backbone: int
    values: Values
    row: plan.Row


def make_trial(sweep: Sweep, backbone: int, values: Values) -> Trial:
    """The run of one proposal; InputError if it is not a valid fine-tuning config."""
    finetune = {**sweep.finetune, **values}
    subset = Subset(**{key: finetune.pop(key) for key in KEYS if key in finetune})
    seed = finetune.pop("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"seed={seed!r} must be an integer")
    experiment = Experiment(
        name=sweep.name,
        title=sweep.title,
        notice=sweep.notice,
        data=replace(sweep.data, train=subset.path(sweep.folder / "data", sweep.data.train)),
        backbones=[sweep.backbones[backbone]],
        finetune=finetune,
        seeds=[seed],
        replicates=sweep.replicates,
        runs=sweep.runs,
        cards=sweep.cards,
        weights_dir=sweep.weights_dir,
        tracking_uri=sweep.tracking_uri,
    )
    return Trial(backbone, values, plan.make(experiment)[0])


def planned(sweep: Sweep) -> list[Trial] | None:
    """The trials of a grid or of random draws, each run once; None with TPE, which decides as it goes."""
    space = check(sweep)
    if sweep.sampler == "tpe":
        return None
    if sweep.sampler == "grid":
        draws = grid(space)
        budgets = [len(draws)] * len(sweep.backbones)
    else:
        budgets = sweep.budgets
        draws = random_draws(space, max(budgets), sweep.seed)
    # Backbones take turns, so that an interrupted sweep has something of each.
    trials = [
        make_trial(sweep, backbone, values)
        for place, values in enumerate(draws)
        for backbone, budget in enumerate(budgets)
        if place < budget
    ]
    return list({each.row.run: each for each in reversed(trials)}.values())[::-1]


def check(sweep: Sweep) -> Space:
    """The search space; InputError on what would fail before or in every trial."""
    space = parse_space(sweep.space)
    both = sorted(set(sweep.space) & set(sweep.finetune))
    if both:
        raise InputError(f"{both[0]!r} is in both space and finetune; keep one")
    if not sweep.backbones:
        raise InputError("backbones is empty; list at least one")
    if sweep.sampler == "grid" and (sweep.trials is not None or sweep.budget):
        raise InputError("trials belongs to sampler=random or tpe; a grid tries every combination: leave it out")
    if any(backbone.seeds is not None for backbone in sweep.backbones):
        raise InputError("seeds of a backbone belong to a benchmark; in a sweep list them under space.seed")
    labels = [backbone.label for backbone in sweep.backbones]
    unknown = [label for label in sweep.budget if label not in labels]
    if unknown:
        raise InputError(f"budget: no backbone {unknown[0]!r}{nearest(unknown[0], labels)}")
    if sweep.sampler != "grid" and min(sweep.budgets) < 1:
        raise InputError(f"sampler={sweep.sampler} needs trials=N, the trials of each backbone")
    ranges = [key for key in KEYS if isinstance(space.get(key), Range)]
    if ranges:
        raise InputError(f"space.{ranges[0]} is a range, but every value is a training set of its own; list values")
    if sweep.scheduler == "pbt":
        from jobs import population

        population.check(sweep, space)
    for backbone in range(len(sweep.backbones)):
        for corner in ("low", "high"):
            ends = {
                key: getattr(values, corner) if isinstance(values, Range) else values[0 if corner == "low" else -1]
                for key, values in space.items()
            }
            make_trial(sweep, backbone, ends)
    return space


def first_trials(sweep: Sweep, space: Space) -> list[Trial]:
    """A trial of each backbone, and of each seed that may start a random one from other weights."""
    values = {key: choices.low if isinstance(choices, Range) else choices[0] for key, choices in space.items()}
    seeds = space.get("seed", [None])
    if isinstance(seeds, Range):
        seeds = range(seeds.low, seeds.high + 1)
    return [
        make_trial(sweep, backbone, values if seed is None else {**values, "seed": seed})
        for backbone in range(len(sweep.backbones))
        for seed in seeds
    ]


def prepare_features(sweep: Sweep, todo: list[Trial]) -> None:
    """Compute the frozen features that the trials share, where they are not there yet."""
    from jobs import sweep_features

    configs = {sweep_features.key(each.row.config): each.row.config for each in todo if each.row.config.features}
    for config in configs.values():
        sweep_features.prepare(config, sweep.data.by_name().values(), sweep.place.features)


def pack_subsets(sweep: Sweep, space: Space) -> None:
    """Make the training sets that the space asks for, where they are not there yet."""
    axes = {key: space.get(key, [sweep.finetune[key]] if key in sweep.finetune else None) for key in KEYS}
    axes = {key: values for key, values in axes.items() if values is not None}
    for values in itertools.product(*axes.values()):
        take(Subset(**dict(zip(axes, values, strict=True))), sweep.data.train, sweep.folder / "data")


class Journal:
    """Which trials a sweep has begun, in the order of their proposals: ``RUNS/SWEEP/trials.jsonl``. TPE goes on from
    it after a kill; how a trial went is in its run directory."""

    def __init__(self, config: Sweep) -> None:
        self._config = config
        self._file = config.folder / "trials.jsonl"
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True) if self._file.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill may have cut the last one short
        if whole != lines:
            with atomic(self._file) as temporary:
                temporary.write_text("".join(whole), encoding="utf-8")
        self._entries = [json.loads(line) for line in whole]

    def note(self, begun: Trial) -> None:
        """Add a trial that is about to begin, unless it is in."""
        entry = {"backbone": self._config.backbones[begun.backbone].label, "values": begun.values}
        if entry not in self._entries:
            self._entries.append(entry)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def trials(self) -> list[Trial]:
        """Trials of the backbones and the space that the sweep has now."""
        labels = [backbone.label for backbone in self._config.backbones]
        return [
            make_trial(self._config, labels.index(each["backbone"]), each["values"])
            for each in self._entries
            if each["backbone"] in labels and set(each["values"]) == set(self._config.space)
        ]

    def auc(self, ended: Trial) -> float | None:
        """Best validation AUC of a trial; None if it failed."""
        from trainer.state import read_metrics

        record = trial.read_record(ended.row)
        run = trial.as_run(ended.row).run
        rows = [row["validation/auc"] for row in read_metrics(run) if "validation/auc" in row]
        return max(rows) if rows and record and record["status"] != "failed" else None
