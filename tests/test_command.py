"""Configuration and the user's mistakes, as every command sees them."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from data_shards.command import InputError, from_dict, parse, run, to_dict, write_yaml


@dataclass
class Optimizer:
    lr: float = 1e-3
    name: Literal["adamw", "sgd"] = "adamw"


@dataclass
class Config:
    """A config."""

    backbone: str
    epochs: int = 3
    optimizer: Optimizer = field(default_factory=Optimizer)
    unseen: dict[str, Path] = field(default_factory=dict)


def test_defaults_then_file_then_command_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("backbone: vit\nepochs: 5\noptimizer: {lr: 0.1}\n")
    config = parse(Config, [str(file), "epochs=7", "optimizer.name=sgd"])
    assert config == Config("vit", 7, Optimizer(0.1, "sgd"))
    assert parse(Config, ["--config", str(file)]) == Config("vit", 5, Optimizer(0.1))


@dataclass
class Switched:
    profile: bool = False
    flip: bool = True


@pytest.mark.parametrize("argv", [["--profile"], ["--profile", "flip=true"], ["--profile", "true"], ["profile=true"]])
def test_a_switch_alone_means_true(argv):
    assert parse(Switched, argv) == Switched(profile=True)


def test_a_switch_leaves_what_follows_alone(tmp_path):
    (tmp_path / "c.yaml").write_text("flip: false\n")
    assert parse(Switched, ["--profile", str(tmp_path / "c.yaml")]) == Switched(profile=True, flip=False)
    assert parse(Switched, ["--profile", "false"]) == Switched()


def test_round_trip_through_dict_and_yaml(tmp_path):
    config = Config("vit", 2, Optimizer(0.5), {"stylegan": Path("a/b")})
    assert from_dict(Config, to_dict(config)) == config
    write_yaml(tmp_path / "c.yaml", config)
    assert parse(Config, [str(tmp_path / "c.yaml")]) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["backbone=a", "epoch=1"], "unknown key 'epoch'; did you mean 'epochs'?"),
        (["backbone=a", "optimizer.l=1"], "unknown key 'optimizer.l'; did you mean 'optimizer.lr'?"),
        (["backbone=a", "epochs=many"], "epochs"),
        (["backbone=a", "optimizer.name=adam"], "optimizer.name"),
        ([], "missing; give it as key=value or in --config: backbone"),
        (["nowhere.yaml"], "File does not exist"),
    ],
)
def test_mistakes_name_the_thing(argv, message):
    with pytest.raises(InputError) as error:
        parse(Config, argv)
    assert message in str(error.value)


def test_an_unknown_key_in_a_file_is_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("backbone: vit\noptimiser: {lr: 1}\n")
    with pytest.raises(InputError, match=r"unknown key 'optimiser.*; did you mean 'optimizer"):
        parse(Config, [str(tmp_path / "c.yaml")])


def test_input_errors_are_one_line_and_exit_status_2(capsys):
    def fail(_):
        raise InputError("face 'a.jpg' is missing\nadd it or remove its row")

    with pytest.raises(SystemExit) as end:
        run(Config, fail, ["backbone=a"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: face 'a.jpg' is missing add it or remove its row\n"


def test_other_errors_keep_their_traceback():
    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Config, fail, ["backbone=a"])


def test_a_real_command_exits_with_2():
    result = subprocess.run(
        [sys.executable, "-m", "jobs.run", "plan=nowhere.jsonl", "row=0"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "error: no plan at nowhere.jsonl; make it with: python -m jobs.plan EXPERIMENT.yaml\n"
