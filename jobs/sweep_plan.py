"""The sweep file, the trials that it stands for, and which of them have begun."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_shards.command import InputError, nearest
from data_shards.files import atomic
from jobs import plan, trial
from jobs.experiment import Backbone, Data, Experiment
from jobs.search import Range, Space, Values, grid, parse_space, random_draws, within
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
    """Both for each process of a trial. A backbone that does not fit on one GPU gets several: ``processes`` under its
    finetune, with deepspeed_stage if need be."""
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
        return all(map(self.on_features, self.backbones))

    def on_features(self, backbone: Backbone) -> bool:
        """Whether the backbone's trials train heads on frozen features."""
        return {**self.finetune, **backbone.finetune}.get("features") is not None

    @property
    def place(self) -> trial.Place:
        return trial.Place(self.folder / "data", self.data.train, self.cpus_per_trial, self.gpus_per_trial)


@dataclass(frozen=True)
class Trial:
    """A proposal and the fine-tuning run that it stands for."""

    backbone: int
    values: Values
    row: plan.Row


def make_trial(sweep: Sweep, backbone: int, values: Values) -> Trial:
    """The run of one proposal; InputError if it is not a valid fine-tuning config."""
    finetune = {key: value for key, value in {**sweep.finetune, **values}.items() if key not in KEYS}
    seed = finetune.pop("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"seed={seed!r} must be an integer")
    experiment = Experiment(
        name=sweep.name,
        title=sweep.title,
        notice=sweep.notice,
        data=replace(sweep.data, train=_training_set(sweep, values)),
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


def maker(sweep: Sweep) -> Callable[[int, Values], Trial]:
    """``make_trial`` for a sweep that ``check`` has seen: strict parsing takes a hundredth of a second, so it is done
    once for each backbone."""
    first: dict[int, Trial] = {}

    def make(backbone: int, values: Values) -> Trial:
        if backbone not in first:
            first[backbone] = make_trial(sweep, backbone, values)
        row = first[backbone].row
        changed = {key: value for key, value in values.items() if key not in KEYS}
        train = {"train": str(_training_set(sweep, values))}
        finetune, score = {**row.finetune, **changed, **train}, {**row.score, **train}
        return Trial(backbone, values, replace(row, finetune=finetune, score=score))

    return make


def _training_set(sweep: Sweep, values: Values) -> Path:
    subset = Subset(**{key: value for key, value in {**sweep.finetune, **values}.items() if key in KEYS})
    return subset.path(sweep.folder / "data", sweep.data.train)


def listed(sweep: Sweep, space: Space) -> list[Trial]:
    """The trials of a grid or of random draws, each run once."""
    make = maker(sweep)
    if sweep.sampler == "grid":
        draws = grid(space)
        budgets = [len(draws)] * len(sweep.backbones)
    else:
        budgets = sweep.budgets
        draws = random_draws(space, max(budgets), sweep.seed)
    # Backbones take turns, so that an interrupted sweep has something of each.
    return distinct(
        make(backbone, values)
        for place, values in enumerate(draws)
        for backbone, budget in enumerate(budgets)
        if place < budget
    )


def check(sweep: Sweep) -> Space:
    """The search space; InputError on what would fail before or in every trial."""
    space = parse_space(sweep.space)
    both = sorted(set(sweep.space) & set(sweep.finetune))
    if both:
        raise InputError(f"{both[0]!r} is in both space and finetune; keep one")
    if not sweep.backbones:
        raise InputError("backbones is empty; list at least one")
    for backbone in sweep.backbones:
        own = sorted(set(space) & set(backbone.finetune))
        if own:
            raise InputError(f"{own[0]!r} is in space and under finetune of backbone {backbone.label}; keep one")
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
    _check_processes(sweep)
    _check_features(sweep, space)
    if sweep.scheduler == "pbt":
        from jobs import population

        population.check(sweep, space)
    for backbone in range(len(sweep.backbones)):
        for values in _every_value(space):
            trial_config = make_trial(sweep, backbone, values).row.config
            trial_config.rank_batch(trial_config.processes or 1)
    return space


def processes_per_trial(sweep: Sweep) -> list[int]:
    """Of each backbone: what its finetune, or the sweep's, says under ``processes``."""
    return [{**sweep.finetune, **each.finetune}.get("processes") or 1 for each in sweep.backbones]


def _check_processes(sweep: Sweep) -> None:
    if "processes" in sweep.space:
        raise InputError("space.processes changes nothing that comes out; put processes under finetune")
    gpus = sweep.gpus_per_trial
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"gpus_per_trial={gpus:g}: a process has a share of one GPU or whole ones; say {int(gpus)}")
    for backbone, processes in zip(sweep.backbones, processes_per_trial(sweep), strict=True):
        if processes > 1 and gpus != int(gpus):
            raise InputError(
                f"{backbone.label}: processes={processes} with gpus_per_trial={gpus:g}, but each process has a GPU of "
                "its own; say gpus_per_trial=1, or 0 for none"
            )
        deepspeed = {**sweep.finetune, **backbone.finetune}.get("deepspeed_stage")
        if sweep.scheduler == "pbt" and (processes > 1 or deepspeed):
            raise InputError(f"{backbone.label}: a member of a population is one process, without DeepSpeed")
        if processes > 1 and sweep.on_features(backbone):
            raise InputError(f"{backbone.label}: processes={processes}, but a head on features is one process")


def _check_features(sweep: Sweep, space: Space) -> None:
    if "features" in space:
        raise InputError("space.features changes nothing that comes out; put features under finetune")
    for backbone in sweep.backbones:
        if sweep.sampler == "tpe" and "seed" in _of_features(sweep, backbone) and isinstance(space.get("seed"), Range):
            raise InputError(
                f"space.seed is a range, and {backbone.label} has other features with each seed, which TPE wants to "
                "have beforehand; list seeds"
            )


def _every_value(space: Space) -> list[Values]:
    """As few proposals as hold every choice of the lists and both ends of the ranges."""
    choices = [[values.low, values.high] if isinstance(values, Range) else values for values in space.values()]
    return [
        {key: each[min(place, len(each) - 1)] for key, each in zip(space, choices, strict=True)}
        for place in range(max(map(len, choices)))
    ]


def first_values(space: Space) -> Values:
    """The first choice of each list, and the low end of each range."""
    return {key: choices.low if isinstance(choices, Range) else choices[0] for key, choices in space.items()}


def first_trials(sweep: Sweep, space: Space) -> list[Trial]:
    """A trial of each backbone, and of a frozen one of each choice in the space that its features depend on."""
    found = []
    for place, backbone in enumerate(sweep.backbones):
        keys = [key for key in _of_features(sweep, backbone) if key in space]
        for chosen in itertools.product(*(space[key] for key in keys)):
            values = {**first_values(space), **dict(zip(keys, chosen, strict=True))}
            found.append(make_trial(sweep, place, values))
    return found


def _of_features(sweep: Sweep, backbone: Backbone) -> list[str]:
    """Hyperparameters that change a backbone's frozen features, if they are trained on."""
    if not sweep.on_features(backbone):
        return []
    return ["precision", "seed"] if backbone.initialisation == "random" else ["precision"]


def prepare_shared(sweep: Sweep, todo: list[Trial]) -> None:
    """Make what the trials share, where it is not there yet: frozen features, and decoded pictures for those that train
    without."""
    from jobs import sweep_features, sweep_pictures

    configs = [each.row.config for each in todo]
    frozen = {sweep_features.key(config): config for config in configs if config.features}
    sweep_features.prepare_all(list(frozen.values()), list(sweep.data.by_name().values()), sweep.place.features)
    sizes = {sweep_pictures.input_size(config) for config in configs if not config.features}
    sweep_pictures.prepare(sizes, sweep.data.by_name(), sweep.place.pictures)


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

    def note(self, backbone: int, values: Values) -> None:
        """Add a proposal."""
        entry = {"backbone": self._config.backbones[backbone].label, "values": values}
        self._entries.append(entry)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def proposals(self) -> list[Trial]:
        """Trials of the backbones and the keys that the sweep has now, one for each proposal: several may be one run.
        InputError where a value is no longer in the space."""
        labels, space = [backbone.label for backbone in self._config.backbones], parse_space(self._config.space)
        found, make = [], maker(self._config)
        for each in self._entries:
            if each["backbone"] not in labels or set(each["values"]) != set(space):
                continue
            gone = [key for key, value in each["values"].items() if not within(space[key], value)]
            if gone:
                raise InputError(
                    f"a trial of this sweep had {gone[0]}={each['values'][gone[0]]}, which space.{gone[0]} no longer "
                    f"holds; put it back, or give the changed sweep another name"
                )
            found.append(make(labels.index(each["backbone"]), each["values"]))
        return found


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """One for each run, in their order."""
    found: dict[Path, Trial] = {}
    for each in trials:
        found.setdefault(each.row.run, each)
    return list(found.values())


def best_auc(ended: Trial) -> float | None:
    """Best validation AUC of a trial; None if it failed, or has none. One that its scheduler has just stopped has no
    record yet."""
    from trainer.state import read_metrics

    record = trial.read_record(ended.row)
    if record is not None and record["status"] == "failed":
        return None
    rows = read_metrics(trial.as_run(ended.row).run)
    return max((row["validation/auc"] for row in rows if "validation/auc" in row), default=None)
