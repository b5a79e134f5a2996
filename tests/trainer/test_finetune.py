"""The command as a user runs it: both launch forms, mistakes, and which files it opens."""

import ctypes
import os
import struct
import subprocess
import sys

import pytest

from data_shards.command import InputError, to_dict, write_yaml
from tests.trainer import launching
from tests.trainer.launching import error_line
from trainer import finetune
from trainer.launch import SCRIPT


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return launching.run([sys.executable, *arguments], env=variables)


@pytest.fixture
def written(tmp_path):
    """Function (config) → path of its YAML file."""

    def write(config):
        file = tmp_path / "config.yaml"
        write_yaml(file, to_dict(config))
        return file

    return write


class Opened:
    """Names of the files below folders that any process opens inside the block, as the kernel's inotify reports: also
    those that a library opens without Python's knowledge."""

    def __init__(self, *folders):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        self._folders = {}
        for folder in folders:
            number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), 0x20)  # IN_OPEN
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._folders[number] = folder

    def files(self, folder) -> set[str]:
        """File names opened in ``folder`` since the last call for any folder."""
        found = set()
        try:
            data = os.read(self._descriptor, 2**20)
        except BlockingIOError:
            data = b""
        while data:
            number, _, _, length = struct.unpack("iIII", data[:16])
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            if self._folders.get(number) == folder and name:
                found.add(name)
            data = data[16 + length :]
        return found


@pytest.mark.slow
def test_training_opens_no_test_shard(toy_config, toy_sets, written, launch):
    """Train, validation and test sets lie side by side; the real launch never opens a file of the test set."""
    config = toy_config(epochs=0.8)
    watch = Opened(toy_sets["test"])
    control = Opened(toy_sets["validation"])
    done = launch(config)
    assert done.returncode == 0, done.stderr
    assert watch.files(toy_sets["test"]) == set()
    # The same watch sees what is opened: by training the validation set, and by scoring the test set afterwards.
    assert {"manifest.json", "index.parquet", "shard-000000.tar"} <= control.files(toy_sets["validation"])
    done = run("-m", "trainer.predict", f"run={config.directory}", f"shards={{test: {toy_sets['test']}}}")
    assert done.returncode == 0, done.stderr
    assert {"manifest.json", "index.parquet", "shard-000000.tar"} <= watch.files(toy_sets["test"])


@pytest.mark.slow
def test_both_forms_give_the_same_and_a_finished_run_says_so(toy_config, written, launch):
    module, file = toy_config(epochs=0.8, experiment="module"), toy_config(epochs=0.8, experiment="file")
    done = run("-m", "trainer.finetune", "--config", str(written(module)))
    assert done.returncode == 0, done.stderr
    assert "validation AUC" in done.stdout
    # Quiet in a log file: one line at the start and one at the end.
    name = module.directory.name
    assert [line.split(":")[0] for line in done.stderr.splitlines() if name in line] == [name, name]
    done = run(str(SCRIPT), "--config", str(written(module)), "experiment=file")
    assert done.returncode == 0, done.stderr
    for kind in ("best", "last"):
        weights = [(config.directory / f"{kind}.safetensors").read_bytes() for config in (module, file)]
        assert weights[0] == weights[1]
    again = run("-m", "trainer.finetune", "--config", str(written(module)), "threads=5")
    assert again.returncode == 0
    assert again.stdout == f"{module.directory} is finished already\n"


def test_mistakes_are_one_line_and_status_2(toy_config, written, tmp_path):
    file = str(written(toy_config()))
    cases = [
        (["bach_size=4"], "unknown key 'bach_size'; did you mean 'batch_size'?"),
        (["epochs=-1"], "epochs=-1.0: must be above 0"),
        (["test=somewhere"], "unknown key 'test'"),
        (["mode=some"], "mode"),
    ]
    for arguments, message in cases:
        done = run("-m", "trainer.finetune", "--config", file, *arguments)
        assert done.returncode == 2
        assert message in error_line(done.stderr)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_mistakes_found_on_the_way_leave_one_line_and_nothing_half_written(toy_config, written, tmp_path):
    file = str(written(toy_config()))
    cases = [
        (f"train={tmp_path / 'nowhere'}", "there is no shard set at"),
        ("backbone=tiny_vitt", "did you mean 'tiny_vit'?"),
        ("initialisation=pretrained", "absent.safetensors"),
    ]
    for argument, message in cases:
        done = run("-m", "trainer.finetune", "--config", file, argument)
        assert done.returncode == 2, done.stderr
        assert message in error_line(done.stderr)
    assert not list(tmp_path.glob("runs/*/*/config.yaml"))


def test_a_mistake_of_one_process_alone_is_told_after_rank_zero_had_its_turn(toy_config, monkeypatch):
    """A file that another machine lacks: rank 0 has nothing to say, and waits."""

    def fail(*_):
        raise InputError("there is no such file here")

    waited = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(finetune, "_finetune", fail)
    monkeypatch.setattr(finetune.time, "sleep", waited.append)
    with pytest.raises(InputError, match="no such file here"):
        finetune.finetune(toy_config())
    assert waited == [finetune.RANK_ZERO_FIRST]
