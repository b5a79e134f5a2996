"""All benchmarks of data_shards, one after the other, as one Markdown page with versions and machine.

    python -m tests.benchmarks.data [OUT.md] [--quick]

OUT.md is runs/bench-data.md unless given. ``--quick`` takes small sizes: for a look, not for figures.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

from data_shards.files import atomic

HERE = Path(__file__).parent
BENCHES = {  # title: (arguments, those of --quick), the script first
    "Reading": (["bench_loader.py"], ["bench_loader.py", "--images", "500", "--epochs", "1", "--rounds", "1"]),
    "Resuming in the middle of an epoch": (["bench_resume.py"], ["bench_resume.py", "--samples", "3000"]),
    "Packing, one process": (["bench_pack.py", "20000", "1"], ["bench_pack.py", "1000", "1"]),
    "Packing, two processes": (["bench_pack.py", "20000", "2"], ["bench_pack.py", "1000", "2"]),
    "Damage": (["bench_corruption.py", "1000"], ["bench_corruption.py", "33"]),
}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="runs/bench-data.md", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    page = [
        f"# Benchmarks of data_shards, {datetime.date.today()}",
        f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; load {load:.1f} before.",
    ]
    failed = []
    for title, (full, quick) in BENCHES.items():
        script, *arguments = quick if options.quick else full
        print(f"{title}: {script} {' '.join(arguments)}", file=sys.stderr)
        command = [sys.executable, str(HERE / script), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        page += [f"## {title}", f"`python tests/benchmarks/{' '.join([script, *arguments])}`", done.stdout.strip()]
        if done.returncode:
            failed.append(script)
            page.append(f"It ended with status {done.returncode}.")
    with atomic(options.out) as temporary:
        temporary.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(options.out)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
