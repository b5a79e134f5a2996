"""The house keeps its shape: arrows between rooms, file sizes, help without heavy imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "data_shards": set(),
    "evaluation": set(),
    "trainer": {"data_shards", "evaluation"},
    "jobs": {"data_shards", "evaluation", "trainer"},
}
COMMANDS = [
    f"{path.parent.name}.{path.stem}"
    for room in ROOMS
    for path in sorted((ROOT / room).glob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
]
HEAVY = ("torch", "timm", "mlflow", "ray", "sklearn", "matplotlib", "deepspeed", "accelerate", "transformers")


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room):
    for path in (ROOT / room).rglob("*.py"):
        ours = imported(path) & set(ROOMS)
        assert ours <= ROOMS[room] | {room}, f"{path.relative_to(ROOT)} imports {ours - ROOMS[room] - {room}}"


@pytest.mark.parametrize("package", ["mlflow", "accelerate"])
def test_one_place_talks_to_mlflow_and_one_builds_an_accelerator(package):
    owner = {"mlflow": "evaluation/tracking.py", "accelerate": "trainer/distributed.py"}[package]
    users = {str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py") if package in imported(p)}
    assert users == {owner}


def test_no_file_of_the_suite_is_long():
    for room in (*ROOMS, "tests"):
        for path in (ROOT / room).rglob("*.py"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= 450, f"{path.relative_to(ROOT)} has {lines} lines; split it by meaning"


def test_no_code_folder_beside_the_rooms():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in tracked.splitlines()} <= {*ROOMS, "tests"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_import(command):
    """--help answers at once: measured by what is imported, not by a clock. Run as users run it: jsonargparse also
    executes the imports below ``if TYPE_CHECKING`` of the file that is ``__main__``."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "jsonargparse" in loaded
    assert not loaded & set(HEAVY)
