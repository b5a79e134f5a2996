"""Fine-tuning and extraction on a GPU: images/s, share of the chip's measured matrix rate, waiting for data.

    python tests/benchmarks/bench_gpu.py [--models vit_base_patch16_224 vit_large_patch14_clip_224] [--batch 256]

ViT-B/16 and ViT-L/14 in bfloat16, as trainer.loop.fit runs them, with and without torch.compile, and as
trainer.features extracts (which does not compile). The matrix rate is measured first, in the same process: the best of
several large bfloat16 products. The share is images/s times the model's operations (forward, and twice that for the
backward pass, by torch's flop counter) over that rate. Prints Markdown with versions.

State: ready, **not run on a GPU so far** (none was at hand). On a CPU its mechanics are checked with
``--models test_vit --batch 8 --images 32 --updates 2 --matrix 512 --size 160``; those figures mean nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
DISTINCT = 200
"""Different pictures in the shards: decoding costs the same for copies."""


def make_sets(folder: Path, images: int, size: int) -> dict[str, Path]:
    """Shard sets ``train`` and ``validation`` of smooth noisy JPEGs."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from data_shards.pack import pack

    random, encoded, rows = np.random.default_rng(0), [], []
    for _ in range(min(images, DISTINCT)):
        coarse = Image.fromarray(random.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((size, size))
        pixels = np.asarray(coarse, np.float32) + random.normal(0, 3.5, (size, size, 1))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    (folder / "faces").mkdir()
    for number in range(images + 64):
        name = f"{number:06d}.jpg"
        (folder / "faces" / name).write_bytes(encoded[number % len(encoded)])
        label, method = (("real", "pristine"), ("fake", "none"))[number % 2]
        rows.append((name, label, method, name, "bench", "train" if number < images else "validation"))
    faces = pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset", "split"])
    return pack(faces, folder / "faces", folder / "sets")


def matrix_rate(side: int) -> float:
    """Best floating-point operations per second of bfloat16 products of ``side`` x ``side`` matrices."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(5):
        wait()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        wait()
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * side**3 / best


def forward_operations(model: str, size: int) -> int:
    """Floating-point operations of one image's forward pass, counted without computing anything."""
    import timm
    import torch
    from bench_training import image_size
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = timm.create_model(model, num_classes=1, **image_size(model, size)).eval()
        images = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops()


def train(options: argparse.Namespace, folder: Path, *, compiled: bool) -> dict[str, Any]:
    """Rows of metrics.jsonl between two evaluations, the first left out as warm-up."""
    from bench_training import write_card

    from trainer.config import FinetuneConfig
    from trainer.distributed import build_accelerator
    from trainer.loop import fit

    rows: list[dict[str, Any]] = []
    config = FinetuneConfig(
        backbone="bench",
        initialisation="random",
        cards=write_card(folder, options.model, options.size),
        train=options.sets / "train",
        validation=options.sets / "validation",
        runs=folder,
        batch_size=options.batch,
        epochs=4 * options.updates * options.batch / options.images,
        evaluate_every=1e6,
        log_every=options.updates,
        precision="bf16",
        compile=compiled,
        threads=options.threads,
    )
    fit(config, build_accelerator(config), rows.append)
    rows = [row for row in rows if "speed/images_per_second" in row][1:]
    best = max(rows, key=lambda row: row["speed/images_per_second"])
    return {
        "images": best["speed/images_per_second"],
        "wait": best["speed/data_wait_share"],
        "memory": best.get("memory/gpu_peak_mib", float("nan")),
        "passes": 3,
    }


def extract(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Extraction without loading weights and writing the file; the first pass over the set is a warm-up."""
    import torch
    from bench_training import write_card

    from data_shards.manifest import ShardSet
    from trainer.backbones import create_backbone, get_card
    from trainer.features import _compute
    from trainer.parts import Parts

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = get_card("bench", write_card(folder, options.model, options.size))
    backbone, shards = create_backbone(card, initialisation="random"), ShardSet.open(options.sets / "train")
    seconds = []
    for _ in range(3):
        start, parts = time.perf_counter(), Parts(folder / "features.parquet")
        _compute(backbone, shards, options.batch, options.threads, device, "bf16", parts, title="features")
        parts.discard()
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")
    return {"images": len(shards) / min(seconds[1:]), "wait": float("nan"), "memory": memory, "passes": 1}


RUNS = {
    "training": lambda options, folder: train(options, folder, compiled=False),
    "training, compiled": lambda options, folder: train(options, folder, compiled=True),
    "extraction": extract,
}


def one(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rate = matrix_rate(options.matrix)
        result = RUNS[options.run](options, Path(folder))
    share = result["images"] * result["passes"] * forward_operations(options.model, options.size) / rate
    print(json.dumps({**result, "share": share, "rate": rate}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["vit_base_patch16_224", "vit_large_patch14_clip_224"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--updates", type=int, default=30, help="per interval; four are run, the first is left out")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices whose rate is measured")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="for decoding")
    parser.add_argument("--works", nargs="*", default=list(RUNS), choices=list(RUNS))
    for hidden in ("--model", "--run", "--sets"):  # one measurement, in its own process
        parser.add_argument(hidden, type=Path if hidden == "--sets" else str, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        one(options)
        return
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU (these figures mean nothing)"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "accelerate"))
    print(f"{device}, CUDA {torch.version.cuda}, {packages}; bf16, batches of {options.batch}, {options.size} px.\n")
    print("| model | work | images/s | share of the matrix rate | TFLOP/s of it | data wait | GPU MiB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        options.sets = make_sets(Path(folder), options.images, options.size)["train"].parent
        for model in options.models:
            for work in options.works:
                row = _measure(work, model, options)
                print(f"| {model} | {work} | {row['images']:.0f} | {row['share']:.1%}", end="")
                print(f" | {row['rate'] / 1e12:.2f} | {row['wait']:.1%} | {row['memory']:.0f} |", flush=True)


def _measure(work: str, model: str, options: argparse.Namespace) -> dict[str, float]:
    keys = ("batch", "images", "updates", "size", "matrix", "threads", "sets")
    arguments = [text for key in keys for text in (f"--{key}", str(getattr(options, key)))]
    command = [sys.executable, __file__, "--run", work, "--model", model, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
