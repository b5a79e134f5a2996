"""Did separability predict what fine-tuning gave? ``python -m jobs.relation EXPERIMENT.yaml``.

Writes ``RUNS/NAME/relation.json``: every score against the AUC after fine-tuning, over backbones; paired differences
between backbones; verdicts on the claims.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import run
from data_shards.files import write_json
from jobs import collect
from jobs.experiment import Experiment

if TYPE_CHECKING:
    from evaluation.prediction import Prediction


def relation(experiment: Experiment) -> tuple[Path, Prediction]:
    """Write ``relation.json`` from what is on disk."""
    from evaluation.comparison import compared
    from evaluation.prediction import predict

    backbones = collect.backbone_results(experiment)
    prediction = predict(backbones)
    path = experiment.folder / "relation.json"
    differences = {
        data: [each.to_dict() for each in compared({b.name: b.panels[data] for b in backbones if data in b.panels})]
        for data in experiment.separability_sets
    }
    write_json(path, {**prediction.to_dict(), "differences": differences})
    return path, prediction


def main(experiment: Experiment) -> None:
    path, prediction = relation(experiment)
    if prediction.too_few:
        print(prediction.too_few)
    for each in prediction.predictors:
        score = each.relations[0].score
        print(
            f"{each.name:24} {each.data or '(no data)':16} against AUC on {each.outcome:12} tau {score.value:6.3f}  "
            f"[{score.low:.3f}, {score.high:.3f}]  p={each.relations[0].p:.3g}  {each.verdict}"
            + (" (declared in advance)" if each.is_declared else "")
        )
    for outcome, baselines in prediction.missing_baselines.items():
        for baseline in baselines:
            print(f"No baseline against AUC on {outcome}: {baseline}")
    for claim in prediction.claims:
        interval = f" [{claim.score.low:.3f}, {claim.score.high:.3f}]" if math.isfinite(claim.score.low) else ""
        value = f"{claim.score.value:+.3f}{interval}" if math.isfinite(claim.score.value) else claim.score.how
        print(f"{claim.text} ({claim.measure}): {claim.verdict}; {claim.score.name} {value}")
    for each in prediction.conclusions:
        print(f"{each.text}: {each.verdict}; {each.words}")
    print(path)


if __name__ == "__main__":
    run(Experiment, main)
