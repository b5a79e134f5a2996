"""A synthetic benchmark for the tests of figures and report: plausible numbers, no meaning."""

import numpy as np
import pytest

from evaluation.confounds import Confound
from evaluation.null import Null
from evaluation.panel import Panel
from evaluation.prediction import predict
from evaluation.report import BackboneResult, Report, RunResult
from evaluation.score import Score

FAMILIES = [
    ("dinov2_vits14", "self-supervised", "DINOv2", 0.21),
    ("mae_vitb16", "self-supervised", "masked autoencoder", 0.16),
    ("imagenet_efficientnet_lite0", "supervised", "ImageNet classification", 0.12),
    ("insightface_mbf", "face-recognition", "face recognition", 0.08),
    ("clip_vitb32", "language-supervised", "CLIP", 0.18),
    ("expression_densenet121", "expression", "facial expression", 0.10),
    ("mobilesam_tiny_vit_5m", "segmentation", "segmentation", 0.05),
    ("vit_small_patch14_reg4_dinov2.lvd142m", "self-supervised", "DINOv2 with registers", 0.19),
]


def score(name, value, half=0.04, higher=True, n=271):
    return Score(
        name, value, value - half, value + 1.2 * half, higher, n, f"synthetic {name}; 95 % percentile interval"
    )


def backbone(name, family, task, level, rng, *, seeds=(0,), initialisation="pretrained", unseen=("resample",)):
    n = 120
    samples = np.random.default_rng(1)  # the same for every backbone
    label = samples.integers(0, 2, n)
    points = rng.normal(size=(n, 2)) + 20 * level * label[:, None] * [1, 0.3]
    method = np.where(label == 1, samples.choice(["self_blend", "swap", "resample"], n), "pristine")
    runs = []
    for seed in seeds:
        shift = 0.02 * seed
        auc = {"train": 0.98, "validation": 0.7 + level, "test": 0.68 + level, **{u: 0.55 + level / 2 for u in unseen}}
        detection = {
            data: [
                score("auc", value - shift),
                score("ap", value - 0.02),
                score("eer", 1 - value, higher=False),
                score("balanced_accuracy", value - 0.1),
            ]
            for data, value in auc.items()
        }
        gaps = [score("train − validation", 0.28 - level, higher=False), score("test − resample", 0.1, higher=False)]
        curves = [
            {"step": 5 * i, "time": 1.7e9 + i, "split": "train", "loss": 0.7 * 0.9**i + 0.01 * seed} for i in range(20)
        ]
        curves += [
            {
                "step": 25 * i,
                "time": 1.7e9 + i,
                "split": "validation",
                "loss": 0.69 - 0.05 * i + 0.02 * i * i,
                "auc": 0.5 + 0.06 * i,
            }
            for i in range(1, 5)
        ]
        runs.append(RunResult(seed, detection, gaps, curves, 75, f"runs/quickstart/{name}-s{seed}"))
    data = [
        score("knn_auc", 0.5 + level),
        score("silhouette", level / 3, 0.01),
        score("kmeans_ami_k8", level / 4, 0.02),
        score("davies_bouldin", 3 - level, 0.2, higher=False),
        score("linear_probe_auc", 0.55 + level),
    ]
    embeddings = {
        "train + resample": {
            "pca": points, "tsne": points * [1, -1] + rng.normal(size=(n, 2)), "label": label, "method": method,
            "dataset": samples.choice(["sample", "sample-unseen"], n), "group": np.arange(n) // 2,
            **({"score": (label + samples.random(n)) / 2} if initialisation == "pretrained" else {}),
        }
    }  # fmt: skip
    return BackboneResult(
        name, initialisation, task, family, "Apache-2.0", 21_600_000, 384,
        {"train": data, "resample": [score("knn_auc", 0.5 + level / 2), *data[1:]]}, embeddings, runs, [],
        panels={"train": panel(data, level)},
    )  # fmt: skip


def panel(scores, level):
    """Draws that move together over backbones, so that differences of 0.02 are beyond chance."""
    draws = scores[0].value + np.random.default_rng(2).normal(size=50) * (0.02 + 0.01 * level)
    return Panel(
        scores,
        nulls=[Null("knn_auc", scores[0].value, 0.005, 0.5, 0.56, 199)],
        draws=draws.tolist(),
        by_method={name: score("knn_auc", 0.5 + level * part) for name, part in (("self_blend", 0.8), ("swap", 1.2))},
        by_treatment={name: score("knn_auc", 0.5 + level) for name in ("centred", "whitened")},
        transferability=[score("logme", level - 1), score("h_score", level)],
        confounds=[
            Confound("sharpness", 0.55, score("knn_auc", 0.7), scores[0], scores[0], "the label still separates")
        ],
    )


def make_benchmark(count=4, seeds=(0,), unseen=("resample",)) -> Report:
    rng = np.random.default_rng(0)
    backbones = [
        backbone(name, family, task, level, rng, seeds=seeds, unseen=unseen)
        for name, family, task, level in FAMILIES[: count - 1]
    ]
    backbones.append(
        backbone(
            "dinov2_vits14-random", "self-supervised", "DINOv2", 0.01, rng,
            seeds=seeds, initialisation="random", unseen=unseen,
        )
    )  # fmt: skip
    scores = [s for b in backbones for scores in b.separability.values() for s in scores]
    scores += [s for b in backbones for r in b.runs for found in (*r.detection.values(), r.gaps) for s in found]
    return Report(
        title="Quickstart: four backbones on generated faces",
        notice="The faces are generated and the forgeries are scripted: this shows the tool at work, it is not a "
        "scientific result. Nothing may be concluded about real deepfakes.",
        command="python -m jobs.benchmark jobs/configs/quickstart.yaml",
        versions={"torch": "2.14.1", "timm": "1.0.31", "mlflow": "3.17.2"},
        machine="Some processor, 2 cores, 24 GiB, no GPU, Linux",
        commit="0123abc",
        data=[
            {
                "name": name, "split": "train" if name == "train" else "test", "samples": 120, "real": 60, "fake": 60,
                "groups": 60, "methods": "pristine, self_blend, swap", "digest": "0123456789ab",
            }
            for name in ("train", "validation", "test", *unseen)
        ],
        backbones=backbones,
        definitions={s.name: s.how for s in scores},
        prediction=predict(backbones),
    )  # fmt: skip


@pytest.fixture(scope="session")
def benchmark():
    """Function (count, seeds, unseen) → Report."""
    return make_benchmark
