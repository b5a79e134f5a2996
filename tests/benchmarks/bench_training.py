"""Fine-tuning and feature extraction against the bare thing: CPU-seconds and wall time per image, interleaved.

    python tests/benchmarks/bench_training.py [--models resnet18 …] [--steps 20] [--rounds 3] [--threads 2]

"ours" is trainer.loop.fit (trainer.features for extraction) on a shard set: reading, checking, decoding, mirroring,
logging included. "bare" is timm and torch alone on tensors that lie in memory: forward, backward, clipping, AdamW with
the same parameter groups; for extraction forward passes in evaluation mode. Same model, batch, precision, threads and
memory format. Every measurement is a fresh process; after a warm-up, ``steps`` updates are timed. Evaluation and saved
states are outside of what is timed. On a shared machine CPU-seconds hold better than wall time does. Prints Markdown;
a ratio of 0.97 or more (bare / ours) is the aim.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data_shards" / "sample"
MODELS = ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
WARM_UP = 3
SIZE = 224
Clock = tuple[float, float]


def write_card(folder: Path, architecture: str, size: int = SIZE) -> Path:
    """A cards file with one card ``bench`` for random weights."""
    file = folder / "cards.yaml"
    file.write_text(
        f"- {{name: bench, architecture: {architecture}, pretext_task: none, family: none, licence: none, "
        f"input_size: {size}, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], weights: {{file: none.safetensors}}}}\n"
    )
    return file


def now() -> Clock:
    return time.process_time(), time.perf_counter()


def per_image(start: Clock, end: Clock, images: int) -> dict[str, float]:
    return {"cpu": (end[0] - start[0]) / images, "wall": (end[1] - start[1]) / images}


def ours_training(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    from trainer.config import FinetuneConfig
    from trainer.distributed import build_accelerator
    from trainer.loop import fit

    class Enough(Exception):
        pass

    clocks: list[Clock] = []

    def report(row: dict) -> None:
        clocks.append(now())
        if len(clocks) == 2:
            raise Enough

    # A row after every `every` updates: the first ends the warm-up, the second the measurement. Decoding ahead is the
    # same at both ends.
    every = max(options.steps, WARM_UP)
    config = FinetuneConfig(
        backbone="bench",
        initialisation="random",
        cards=write_card(folder, options.model, options.size),
        train=options.train,
        validation=options.validation,
        runs=folder,
        batch_size=options.batch,
        epochs=1e6,
        evaluate_every=1e6,
        log_every=every,
        threads=options.threads,
    )
    try:
        fit(config, build_accelerator(config), report)
    except Enough:
        return per_image(clocks[0], clocks[1], every * options.batch)
    raise RuntimeError("the run ended before it was measured")


def bare_training(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=1, **image_size(options.model, options.size)).train()
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = (torch.arange(options.batch) % 2).float()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)

    def step() -> None:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images).squeeze(-1), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return _repeat(step, options)


def ours_features(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Extraction itself: what trainer.features does between loading the weights and writing the file. Whole sets, so
    the images are those of the training set, once to warm up and then as often as ``steps`` asks for."""
    import torch

    from data_shards.manifest import ShardSet
    from trainer.backbones import create_backbone, get_card
    from trainer.features import _compute
    from trainer.parts import Parts

    card = get_card("bench", write_card(folder, options.model, options.size))
    backbone = create_backbone(card, initialisation="random")
    shards = ShardSet.open(options.train)

    def once() -> None:
        parts = Parts(folder / "features.parquet")
        cpu = torch.device("cpu")
        _compute(backbone, shards, options.batch, options.threads, cpu, "fp32", parts, title="features")
        parts.discard()

    once()
    passes = max(1, round(options.steps * options.batch / len(shards)))
    start = now()
    for _ in range(passes):
        once()
    return per_image(start, now(), passes * len(shards))


def bare_features(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=0, **image_size(options.model, options.size)).eval()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def step() -> None:
        model(images)

    return _repeat(step, options)


def _repeat(step: Callable[[], None], options: argparse.Namespace) -> dict[str, float]:
    for _ in range(WARM_UP):
        step()
    start = now()
    for _ in range(options.steps):
        step()
    return per_image(start, now(), options.steps * options.batch)


def image_size(model: str, size: int) -> dict[str, int]:
    return {"img_size": size} if model.startswith("vit") and size != SIZE else {}


RUNS = {
    "training, ours": ours_training,
    "training, bare": bare_training,
    "features, ours": ours_features,
    "features, bare": bare_features,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels; the shards should have as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch, and for decoding")
    parser.add_argument("--train", type=Path, default=SAMPLE / "train")
    parser.add_argument("--validation", type=Path, default=SAMPLE / "validation")
    parser.add_argument("--model", help=argparse.SUPPRESS)  # one measurement, in its own process
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(RUNS[options.run](options, Path(folder))))
        return
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), {options.threads} threads, Python", end=" ")
    print(f"{platform.python_version()}, {packages}; fp32, batches of {options.batch}, {options.size} px, ", end="")
    print(f"{options.steps} steps, {options.rounds} rounds, median (lowest to highest).\n")
    print("| model | work | ours, CPU ms/image | bare, CPU ms/image | bare / ours, CPU | bare / ours, wall |")
    print("|---|---|---|---|---|---|")
    for model in options.models:
        results: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
        for number in range(options.rounds):
            for name in list(RUNS) if number % 2 == 0 else list(RUNS)[::-1]:
                results[name].append(_measure(name, model, options))
        for work in ("training", "features"):
            print(_row(model, work, results[f"{work}, ours"], results[f"{work}, bare"]), flush=True)


def _measure(name: str, model: str, options: argparse.Namespace) -> dict[str, float]:
    keys = ("steps", "batch", "size", "threads", "train", "validation")
    arguments = [text for key in keys for text in (f"--{key}", str(getattr(options, key)))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--run", name, "--model", model, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _row(model: str, work: str, ours: list[dict[str, float]], bare: list[dict[str, float]]) -> str:
    def ratio(clock: str) -> str:
        ratios = [b[clock] / o[clock] for o, b in zip(ours, bare, strict=True)]
        return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"

    milliseconds = (f"{1e3 * statistics.median(run['cpu'] for run in runs):.2f}" for runs in (ours, bare))
    return f"| {model} | {work} | {' | '.join(milliseconds)} | {ratio('cpu')} | {ratio('wall')} |"


if __name__ == "__main__":
    main()
