"""Rows of a plan as job arrays: ``python -m jobs.arrays plan=runs/NAME/plan.jsonl rows=0-99%8``.

One line for each array: its first row, its indices (which count from there), and the options of sbatch that its rows
ask for, separated by tabs. Rows that ask for the same share arrays; an array has no index at or above ``limit``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.command import InputError, run
from jobs import plan


@dataclass
class Arrays:
    """Which rows to put into arrays."""

    plan: Path
    rows: str
    """As of sbatch --array: 0-99, or 3,7,2000-2010, or 0-29%8, where 8 is how many of each array run at a time."""
    limit: int = 1001
    """The cluster's MaxArraySize; Slurm's default."""


def arrays(resources: list[dict[str, Any]], rows: str, limit: int) -> list[tuple[int, str, list[str]]]:
    """First row, indices and options of each array. Rows beyond ``resources`` ask for nothing: they exit at once."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?", rows):
        raise InputError(f"rows={rows}: expected a list like 0-99 or 3,7,20-29%8")
    numbers, _, at_once = rows.partition("%")
    groups: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
    for number in sorted(_numbers(numbers)):
        asked = options(resources[number]) if number < len(resources) else []
        groups[tuple(asked), number // limit * limit].append(number)
    found = [
        (first, ranges(number - first for number in members) + (at_once and f"%{at_once}"), list(asked))
        for (asked, first), members in groups.items()
    ]
    return sorted(found, key=lambda array: array[0])


def options(resources: dict[str, Any]) -> list[str]:
    """What sbatch calls these resources."""
    names = {
        "nodes": "--nodes={}",
        "gpus": "--gpus-per-node={}",
        "cpus": "--cpus-per-task={}",  # one task a node
        "memory_gb": "--mem={}M",
        "hours": "--time={}",
    }
    scale = {"memory_gb": 1000, "hours": 60}
    return [
        template.format(max(1, round(resources[name] * scale[name])) if name in scale else resources[name])
        for name, template in names.items()
        if name in resources
    ]


def ranges(numbers: Iterable[int]) -> str:
    """``0-2,5`` for 0, 1, 2, 5: what sbatch --array takes."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def _numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def main(config: Arrays) -> None:
    for first, indices, asked in arrays(plan.resources(config.plan), config.rows, config.limit):
        print(first, indices, " ".join(asked), sep="\t")


if __name__ == "__main__":
    run(Arrays, main)
