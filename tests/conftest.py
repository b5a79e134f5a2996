"""What some tests need of the machine."""

import os
import shutil
from collections import Counter

import hypothesis
import pytest

# Tiny models on two cores: threads that wait for each other cost many times what they compute. Processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# MLflow's servers start a handful of processes for jobs of its own kind, which nothing here uses.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

# How long an example takes says nothing on busy cores.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


PROGRAMS = {
    "compiler": ("g++", "DeepSpeed and torch.compile build C++: install g++"),
    "browser": ("chromium", "reports are opened in a browser: install Debian's package chromium"),
}
"""Marker → the program that its tests need, and why."""


def pytest_runtest_setup(item):
    """Tests whose program is missing skip; in CI, which installs all of them, that is a failure."""
    for marker, (program, reason) in PROGRAMS.items():
        if item.get_closest_marker(marker) and not shutil.which(program):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def pytest_collection_modifyitems(items):
    """The files with the most slow tests first: one that began last would keep one core waiting for the other."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
