"""The fine-tuning loop: exact, resumable, and blind to any data but the training and the validation set.

``fit`` counts updates; everything else (position in the data, learning rate, epoch) follows from the count. After
each update, in this order: a training row, an evaluation, a saved state, each when due. So a state holds all that
happened up to its update, and rows after it can be cut on resumption.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from data_shards.files import sha256_file
from data_shards.manifest import ShardSet
from evaluation.detection import auc
from trainer import mixup
from trainer.bad_samples import BadSamples
from trainer.begin import begin, begin_on_features
from trainer.card import determining, get_card
from trainer.classifier import plain_weights
from trainer.config import FinetuneConfig
from trainer.distributed import Engine, on_rank_zero
from trainer.inputs import FeatureInputs, HeadFeatures, Pictures, Rows, complete, shared_head_features
from trainer.non_finite import NonFiniteLoss, explain
from trainer.provenance import peak_memory, versions
from trainer.schedule import Schedule, learning_rate_schedule
from trainer.startup import Startup
from trainer.state import Progress, RunDirectory
from trainer.stop_signals import stop_signals
from trainer.usage import Usage
from trainer.validation import check_sets

if TYPE_CHECKING:
    from trainer.distributed import Accelerator

SELECTION = "highest validation AUC; if equal, lowest validation loss; if equal, the earliest"
Report = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """The run was asked to stop: its state is saved, and the same command resumes it."""


def fit(
    config: FinetuneConfig,
    accelerator: Accelerator,
    report: Report | None = None,
    startup: Startup | None = None,
    features: HeadFeatures | None = None,
    open_shards: Callable[[Path], ShardSet] | None = None,
) -> dict[str, Any]:
    """Train to the end, or on from where the run directory stands, and return the result (also in result.json; at once
    if it is there, see trainer.finished). All processes call it.

    ``report`` gets each row of metrics.jsonl on rank 0. ``startup`` knows when the command was given. ``features``:
    those that a config with features=FOLDER trains on, if they are in memory already; then no backbone is loaded.
    ``open_shards`` opens the sets, maybe with decoded pictures (ShardSet.decoded). Raises Stopped after a stop request
    (SIGTERM, SIGUSR1 or the file RUN/stop), NonFiniteLoss, InputError.
    """
    directory = RunDirectory(config)
    weights_sha256 = features and features.train.provenance["weights_sha256"]
    done = on_rank_zero(accelerator, lambda: directory.result(weights_sha256))
    if done is not None:
        return done
    # The user's mistakes show while the parts are built, before there is any file.
    run = _Fit(config, accelerator, directory, report, startup or Startup(), features, open_shards or ShardSet.open)
    on_rank_zero(accelerator, directory.claim)
    try:
        return run.run()
    finally:
        directory.release()


def better(row: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether an evaluation is to be selected over the best one so far, by SELECTION."""
    return best is None or _rank(row) > _rank(best)


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    return row["validation/auc"], -row["validation/loss"]


class _Fit:
    """One call of ``fit``: the parts, and the steps that use them."""

    def __init__(
        self,
        config: FinetuneConfig,
        accelerator: Accelerator,
        directory: RunDirectory,
        report: Report | None,
        startup: Startup,
        features: HeadFeatures | None,
        open_shards: Callable[[Path], ShardSet],
    ) -> None:
        self.config, self.accelerator, self.directory = config, accelerator, directory
        self.report, self.startup = report or (lambda row: None), startup
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.started = time.perf_counter()
        self.card = get_card(config.backbone, config.cards)
        self.train, self.validation = open_shards(config.train), open_shards(config.validation)
        check_sets(self.train, self.validation)
        self.class_weight = class_weights(self.train.labels, balance=config.class_balance)
        self.schedule = Schedule(len(self.train), config.batch_size, config.epochs, config.evaluate_every)
        self.pass_size = config.rank_batch(self.world) // config.accumulation
        startup.mark("data sets")
        if features is None and config.features is not None:
            features = shared_head_features(config, accelerator)
        self.features = features
        if features is None:
            self.beginning = begin(config, self.card, distributed=self.world > 1 or config.deepspeed_stage > 0)
        else:
            features.check(config, self.train, self.validation)
            self.beginning = begin_on_features(config, features)
        startup.mark("weights")
        self.engine = Engine(accelerator, config, self.beginning.model)
        startup.mark("engine")
        self.usage = Usage(accelerator.device)
        self.learning_rate = learning_rate_schedule(self.engine.optimizer, config, self.schedule.steps)
        self.facts = {
            "training data": self.train.digest,
            "validation data": self.validation.digest,
            "initial weights": self.beginning.weights_sha256,
            "model is fed": "pictures" if self.features is None else "features",
            **{f"card's {name}": value for name, value in determining(self.card).items()},
        }
        torch.manual_seed(config.seed * 1_000_003 + self.rank)  # dropout and stochastic depth differ between ranks

    def run(self) -> dict[str, Any]:
        self.progress = self._resume()
        if self.features is None:
            self.inputs = Pictures(self.config, self.card, self.train, self.validation, self.accelerator)
        else:
            self.inputs = FeatureInputs(self.config, self.features, self.train, self.accelerator)
        self.bad_samples = BadSamples(self.config, self.accelerator, self.train, self.progress)
        self.bad_samples.admit(self.inputs.bad)
        batches = self.inputs.batches(self.progress.step * self.config.batch_size)
        with batches as self.batches, stop_signals() as self.stop_signals, self._bar() as self.bar:
            self._train()
        return self._finish()

    def _resume(self) -> Progress:
        progress = Progress()
        state = on_rank_zero(self.accelerator, self.directory.latest)
        if state is not None:
            progress = self.directory.load(self.accelerator, self.engine, state, self.facts)
        self.resumed_seconds = progress.seconds
        on_rank_zero(self.accelerator, lambda: self.directory.rewind(progress))
        return progress

    @property
    def _over(self) -> bool:
        patience = self.config.patience
        exhausted = patience is not None and self.progress.evaluations_without_gain >= patience
        return exhausted or self.progress.step >= self.schedule.steps

    def _train(self) -> None:
        progress, saved_at = self.progress, time.monotonic()
        self._start_interval()
        self.engine.train()
        while not self._over:
            save_due = time.monotonic() - saved_at >= 60 * self.config.checkpoint_minutes
            stop, save_due = self._update(save_due)
            if progress.step % self.config.log_every == 0 or progress.step == self.schedule.steps:
                self._log_training()
            if self.schedule.evaluates(progress.step):
                self._evaluate()
            every = self.config.checkpoint_steps
            if not self._over and (stop or save_due or (every and progress.step % every == 0)):
                self._save()
                saved_at = time.monotonic()
            if stop and not self._over:
                if self.accelerator.is_main_process:
                    self.directory.stopped(progress.step)
                raise Stopped(f"{self.directory.path} stopped at step {progress.step}; the same command resumes it")

    def _update(self, save_due: bool) -> tuple[bool, bool]:
        """One update. Returns, the same on all processes: whether to stop, and whether to save (rank 0 says)."""
        waited = time.perf_counter()
        batch = next(self.batches)
        self.startup.mark("first batch")
        self.waited += time.perf_counter() - waited
        self.applied = self.learning_rate(self.progress.step)
        losses = self._gradients(batch)
        norm = self.engine.gradient_norm()
        finite = torch.isfinite(losses).all() & torch.isfinite(norm) & self.engine.finite_gradients()
        ask = bool(self.stop_signals) or (self.rank == 0 and self.directory.stop_file.exists())
        flags = torch.tensor([ask, save_due and self.rank == 0], dtype=torch.float32, device=losses.device)
        votes = torch.stack([losses.mean() / self.world, (~finite).float(), *flags])
        loss, bad, stop, save = self.accelerator.reduce(votes, "sum").tolist()
        if bad:
            raise self._non_finite(batch, losses)
        self.norm = float(norm)
        self.progress.step += 1
        self.engine.update(self.progress.step)
        if self.startup.mark("first update") and self.config.profile and self.accelerator.is_main_process:
            print(self.startup, file=sys.stderr, flush=True)
        self.progress.loss_sum += loss
        self.progress.loss_count += 1
        self.bar.update()
        return stop > 0, save > 0

    def _gradients(self, batch: Rows) -> torch.Tensor:
        """Accumulate the gradients of this process's part of the batch; returns its weighted losses (b,)."""
        losses, shares = [], self._shares(len(batch.labels))
        whole = self.inputs.training(batch), batch.labels, shares, self.bad_samples.weights(batch)
        parts = zip(*(values.split(self.pass_size) for values in whole), strict=True)
        for number, (part, labels, share, weight) in enumerate(parts, 1):
            last = number == self.config.accumulation
            with self.engine.accumulating(last=last):
                loss = weight * self._training_losses(self.inputs.prepared(part, self.engine), labels, share)
                self.engine.backward(loss.mean(), last=last)
            losses.append(loss.detach())
        return torch.cat(losses)

    def _shares(self, count: int) -> torch.Tensor:
        """What each sample of this process's part of the next update keeps of itself."""
        if not self.config.mixup:
            return torch.ones(count)
        position = self.progress.step * self.config.batch_size + self.rank * count
        return mixup.shares(position, count, alpha=self.config.mixup, seed=self.config.seed)

    def _training_losses(self, inputs: torch.Tensor, labels: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Weighted losses (b,), with smoothed targets; of blended inputs those with either label, in their shares."""
        smoothing = self.config.label_smoothing
        if not self.config.mixup:
            return self._losses(self.engine.forward(inputs), labels, smoothing)
        logits = self.engine.forward(mixup.blend(inputs, share))
        own, other = (self._losses(logits, each, smoothing) for each in (labels, mixup.partners(labels)))
        share = share.to(own)
        return share * own + (1 - share) * other

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Weighted losses (b,) of logits (b,); ``smoothing`` is for training alone."""
        labels = labels.to(logits.device, non_blocking=True)
        targets = labels * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        real, fake = self.class_weight
        return losses * (real + (fake - real) * labels)

    def _non_finite(self, batch: Rows, losses: torch.Tensor) -> NonFiniteLoss:
        keys = [str(key) for key in self.train.column("key")[batch.index.numpy()]]
        fed = {"inputs": self.inputs.training(batch), "labels": batch.labels, "index": batch.index}
        if self.config.mixup:
            fed["share"] = self._shares(len(keys))
        return explain(self.directory.path, self.engine, self.progress.step + 1, keys, losses, fed)

    def _start_interval(self) -> None:
        self.waited, self.interval, self.interval_step = 0.0, time.perf_counter(), self.progress.step

    def _log_training(self) -> None:
        progress, seconds = self.progress, time.perf_counter() - self.interval
        row = {
            "train/loss": progress.loss_sum / progress.loss_count,
            "train/learning_rate": self.applied,
            "speed/images_per_second": (progress.step - self.interval_step) * self.config.batch_size / seconds,
            "speed/data_wait_share": self.waited / seconds,
            **self.bad_samples.row(),
            **peak_memory(),
        }
        if not self.engine.stage:
            row["train/gradient_norm"] = self.norm
        self._log(row)
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._start_interval()

    def _log(self, row: dict[str, Any]) -> dict[str, Any]:
        """Put a row on record, with the time (seconds since 1970) and what the machine does. What is returned, and may
        be selected, has neither: equal runs select equal rows."""
        row = {"step": self.progress.step, "epoch": self.schedule.epoch(self.progress.step), **row}
        if self.accelerator.is_main_process:
            logged = {**row, "time": time.time(), **self.usage.row()}
            self.directory.log(logged)
            self.report(logged)
        return row

    def _evaluate(self) -> None:
        """Score the validation set, and keep the weights if they are the best so far."""
        started, progress = time.perf_counter(), self.progress
        logits = self.inputs.validation_scores(self.engine, self.pass_size)
        row = self._log({**self._validation_metrics(logits), **self._clean_metrics()})
        self.bar.set_postfix(auc=f"{row['validation/auc']:.3f}")
        gained = progress.best is None or row["validation/auc"] > progress.best["validation/auc"]
        progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
        if better(row, progress.best):
            progress.best = row
            self._write_weights(self.directory.best_weights(progress.step))
        self.engine.train()
        self.interval += time.perf_counter() - started  # evaluation is no training time

    def _validation_metrics(self, logits: torch.Tensor) -> dict[str, Any]:
        self._check_scores(logits, "validation")
        labels = torch.from_numpy(self.validation.labels.astype(np.float64))
        return {
            "validation/auc": auc(labels.numpy(), logits.numpy()),
            "validation/loss": float(self._losses(logits, labels).mean()),
            "validation/n": len(logits),
        }

    def _check_scores(self, logits: torch.Tensor, data: str) -> None:
        if not torch.isfinite(logits).all():
            raise NonFiniteLoss(f"{self.directory.path}: a {data} score is not finite at step {self.progress.step}")

    def _clean_metrics(self) -> dict[str, Any]:
        """AUC and loss on a fixed part of the training data without augmentation, to hold against validation."""
        logits, labels = self.inputs.clean_scores(self.engine, self.pass_size), self.inputs.clean_labels
        self._check_scores(logits, "training")
        loss = self._losses(logits, labels).mean()
        return {"train/auc": auc(labels.numpy(), logits.numpy()), "train/clean_loss": float(loss)}

    def _write_weights(self, path: Any) -> None:
        """Backbone and head as safetensors. All processes call it: ZeRO-3 gathers its weights."""
        weights = plain_weights(self.engine.weights(), self.config)
        if self.accelerator.is_main_process:
            provenance = {
                "backbone": self.card.name,
                "architecture": self.card.architecture,
                "initial_weights_sha256": self.beginning.weights_sha256,
                "run": self.directory.path.name,
                "step": self.progress.step,
            }
            self.directory.save_weights(path, weights, provenance)

    def _save(self) -> None:
        self.progress.seconds = self._seconds()
        self.engine.share_buffers()
        self.directory.save(self.accelerator, self.engine, self.progress, self.facts)

    def _seconds(self) -> float:
        return self.resumed_seconds + time.perf_counter() - self.started

    def _finish(self) -> dict[str, Any]:
        """Publish the selected and the last weights, then the result."""
        self.engine.share_buffers()
        self._write_weights(self.directory.path / "last.safetensors")
        return on_rank_zero(self.accelerator, self._publish)

    def _publish(self) -> dict[str, Any]:
        progress, best = self.progress, self.progress.best
        self.directory.publish_best(best["step"])
        files = ("best.safetensors", "last.safetensors")
        if self.features is not None and self.features.backbone is not None:
            for file in files:
                complete(self.directory.path / file, self.features.backbone)
        result = {
            "run": self.directory.path.name,
            "selected_step": best["step"],
            "selected": best,
            "selection": SELECTION,
            "steps": progress.step,
            "bad_samples": len(progress.bad),
            "stopped_early": progress.step < self.schedule.steps,
            "epoch": self.schedule.epoch(progress.step),
            "backbone": self.card.name,
            "pretext_task": self.card.pretext_task,
            "family": self.card.family,
            "num_features": self.engine.module.head.in_features,
            "parameters": self.beginning.parameters,
            "trainable_parameters": self.beginning.trainable_parameters,
            "card": determining(self.card),
            "weights": {"sha256": self.beginning.weights_sha256, "origin": self.beginning.weights_origin},
            "data": {"train": self.train.digest, "validation": self.validation.digest},
            "checkpoints": {file: sha256_file(self.directory.path / file) for file in files},
            "processes": self.world,
            "device": str(self.accelerator.device.type),
            "deepspeed_stage": self.config.deepspeed_stage,
            "seconds": self._seconds(),
            **peak_memory(),
            **versions(),
        }
        self.directory.finish(result)
        return result

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        """Progress on rank 0's terminal; one line at the start and one at the end in a log file."""
        from tqdm import tqdm

        show, terminal = self.accelerator.is_main_process, sys.stderr.isatty()
        name, steps, first = self.directory.path.name, self.schedule.steps, self.progress.step
        if show and not terminal:
            resumed = f", resumed after update {first}" if first else ""
            print(f"{name}: {steps} updates, {len(self.train)} training samples{resumed}", file=sys.stderr, flush=True)
        with tqdm(total=steps, initial=first, desc=name, unit="update", disable=not (show and terminal)) as bar:
            yield bar
        if show and not terminal:
            auc = self.progress.best and f", best validation AUC {self.progress.best['validation/auc']:.4f}"
            print(f"{name}: {self.progress.step} updates in {self._seconds():.0f} s{auc}", file=sys.stderr, flush=True)


def class_weights(labels: np.ndarray, *, balance: bool) -> tuple[float, float]:
    """Loss weights of real and fake: n / (2 n_class) each if ``balance``, so that their mean over all samples is 1.
    ``labels`` (n,), 0 or 1, both present."""
    real, fake = len(labels) / (2 * np.bincount(labels, minlength=2)) if balance else (1.0, 1.0)
    return float(real), float(fake)
