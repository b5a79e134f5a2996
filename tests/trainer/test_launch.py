"""Real launches through accelerate: one process, two over gloo, DeepSpeed, and launches that are not what they seem."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from data_shards.command import InputError, to_dict, write_yaml
from tests.trainer.launching import error_line, run, started, wait_until
from trainer import launch as launcher
from trainer.begin import begin
from trainer.card import get_card
from trainer.config import run_name
from trainer.launch import SCRIPT, command, exit_status
from trainer.state import read_metrics

KEYS = {"epochs": 2.4, "checkpoint_steps": 2, "drop_path": 0.0}


def flags(line: list[str]) -> dict[str, str]:
    return {line[i]: line[i + 1] for i in range(len(line) - 1) if line[i].startswith("--")}


def test_command_of_one_process_several_and_several_machines(tmp_path):
    config = tmp_path / "config.yaml"
    one = command(config)
    assert one[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert one[-4:] == [str(SCRIPT), "--config", str(config), "--processes=1"]
    assert "--multi_gpu" not in one
    assert "--cpu" not in one
    two = command(config, processes=2)
    assert "--multi_gpu" in two
    assert flags(two)["--num_processes"] == "2"
    assert flags(two)["--main_process_port"] == "0"  # a free one
    many = command(config, processes=4, machines=3, machine_rank=2, head="node7", port=31234, deepspeed_stage=3)
    wanted = {"--num_processes": "12", "--num_machines": "3", "--machine_rank": "2", "--main_process_ip": "node7"}
    wanted |= {"--main_process_port": "31234", "--zero_stage": "3", "--deepspeed_multinode_launcher": "standard"}
    assert wanted.items() <= flags(many).items()
    assert "--use_deepspeed" in many
    assert many[-1] == "--processes=12"


def test_threads_share_the_cores_unless_given(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert flags(command(tmp_path, processes=3))["--num_cpu_threads_per_process"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert flags(command(tmp_path, processes=3))["--num_cpu_threads_per_process"] == "5"


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"machines": 2, "machine_rank": 2}, {"machines": 2}])
def test_numbers_that_do_not_fit(tmp_path, wrong):
    with pytest.raises(InputError, match=r"do not fit together|several machines need head"):
        command(tmp_path, **wrong)


def test_mistakes_show_before_anything_starts(toy_config, tmp_path):
    file = tmp_path / "config.yaml"
    cases = {"train": tmp_path / "nowhere", "backbone": "tiny_vitt", "accumulation": 3}
    messages = ["there is no shard set", "did you mean 'tiny_vit'?", "batch_size=16 is no multiple of 2 processes"]
    for (key, value), message in zip(cases.items(), messages, strict=True):
        write_yaml(file, to_dict(toy_config()) | {key: value if isinstance(value, int) else str(value)})
        line = [sys.executable, "-m", "trainer.launch", f"finetune={file}", "processes=2"]
        done = run(line, timeout=200)
        assert done.returncode == 2
        assert message in error_line(done.stderr)


def test_exit_status_comes_from_what_the_run_left(tmp_path):
    assert exit_status(tmp_path, 1) == 1
    assert exit_status(tmp_path, 0) == 1  # no result: not finished, whatever the launcher says
    (tmp_path / "stopped.json").touch()
    assert exit_status(tmp_path, 1) == 85
    (tmp_path / "result.json").touch()
    assert exit_status(tmp_path, 0) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Cache of one-process weights and rows by what determines them, trained in this process."""
    done = {}

    def of(config, train):
        name = run_name(config)
        if name not in done:
            train(config)
            done[name] = outcome(config)
        return done[name]

    return of


def outcome(config):
    return load_file(config.directory / "last.safetensors"), read_metrics(config.directory)


def module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def assert_same(one, other):
    """Equal up to float32 summation, which AdamW's division magnifies: weights move by up to 1e-3 an update here."""
    for name, tensor in one[0].items():
        torch.testing.assert_close(other[0][name], tensor, rtol=0, atol=2e-4, msg=lambda text, name=name: name + text)
    assert len(one[1]) == len(other[1])
    for row, twin in zip(one[1], other[1], strict=True):
        for name in ("train/learning_rate", "step", "epoch", "validation/n"):
            assert row.get(name) == twin.get(name)
        for name in ("train/loss", "train/gradient_norm", "validation/loss"):
            if name in row and name in twin:
                assert twin[name] == pytest.approx(row[name], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_as_one(toy_config, train, launch, alone):
    """The same global batches: two gloo processes, stopped and resumed by one, end where one process ends."""
    reference = alone(toy_config(**KEYS, experiment="alone"), train)
    half = toy_config(**KEYS, experiment="half", checkpoint_minutes=0)
    half.directory.mkdir(parents=True)
    done = launch(half, 2, TRAINER_TEST_STOP=str(half.directory / "stop"), PYTHONPATH=_stopper(half.directory.parent))
    assert exit_status(half.directory, done.returncode) == 85, done.stderr
    assert "the same command resumes it" in done.stdout
    train(half)
    assert_same(reference, outcome(half))


def _stopper(folder) -> str:
    """A folder with a module that Python imports at start: it makes the stop file when the first state is saved."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "target = os.environ['TRAINER_TEST_STOP']\n"
        "def hook(event, arguments):\n"
        "    if event == 'os.rename' and str(arguments[1]).endswith('latest') and not os.path.exists(target):\n"
        "        os.close(os.open(target, os.O_CREAT))\n"
        "sys.addaudithook(hook)\n"
    )
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.slow
def test_two_processes_with_batch_norm_and_a_frozen_stem(toy_config, train, launch, alone):
    """Head only: batch norm is frozen, so that process count does not matter for a CNN either."""
    keys = {**KEYS, "backbone": "tiny_resnet", "mode": "head"}
    reference = alone(toy_config(**keys, experiment="alone"), train)
    config = toy_config(**keys, experiment="two")
    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished: validation AUC") == 1
    assert_same(reference, outcome(config))


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_on_two_processes_trains_as_one_and_resumes_elsewhere(toy_config, train, launch, alone, stage):
    """Real ZeRO through accelerate launch, stopped; then ZeRO-2 goes on with one process, and ZeRO-3 without DeepSpeed.
    The first use of DeepSpeed compiles a helper, which takes a minute."""
    reference = alone(toy_config(**KEYS, experiment="alone"), train)
    config = toy_config(**KEYS, experiment="zero", deepspeed_stage=stage)
    environment = {"TRAINER_TEST_STOP": str(config.directory / "stop")}
    config.directory.mkdir(parents=True)
    done = launch(config, 2, **environment, PYTHONPATH=_stopper(config.directory.parent))
    assert exit_status(config.directory, done.returncode) == 85, done.stderr
    state = config.directory / "state" / (config.directory / "state" / "latest").read_text().strip()
    assert {path.suffix for path in state.iterdir()} == {".json", ".safetensors"}  # no pickle
    if stage == 2:
        done = launch(config, 1)
        assert done.returncode == 0, done.stderr
        assert json.loads((config.directory / "result.json").read_text())["processes"] == 1
    else:
        assert train(replace(config, deepspeed_stage=0))["deepspeed_stage"] == 0
    assert_same(reference, outcome(config))


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize(("stage", "backbone"), [(2, "tiny_resnet"), (3, "tiny_vit")])
def test_deepspeed_in_bf16_publishes_float32_and_what_is_frozen_as_it_was(toy_config, launch, stage, backbone):
    """Stopped and resumed on the way, which must not round anything either."""
    keys = {
        **KEYS,
        "backbone": backbone,
        "mode": "last_blocks",
        "unfrozen_blocks": 1,
        "precision": "bf16",
        "accumulation": 2,
    }
    config = toy_config(**keys, deepspeed_stage=stage)
    environment = {"TRAINER_TEST_STOP": str(config.directory / "stop")}
    config.directory.mkdir(parents=True)
    done = launch(config, 2, **environment, PYTHONPATH=_stopper(config.directory.parent))
    assert exit_status(config.directory, done.returncode) == 85, done.stderr
    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    model = begin(config, get_card(config.backbone, config.cards), distributed=True).model
    initial = model.state_dict()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for file in ("best", "last"):
        weights = load_file(config.directory / f"{file}.safetensors")
        assert {name: tensor.dtype for name, tensor in weights.items()} == {n: t.dtype for n, t in initial.items()}
        for name in learning:
            assert not torch.equal(weights[name], weights[name].bfloat16().float()), f"{name} is rounded"
        moving = {module_of(name) for name in learning}  # batch statistics too
        for name in weights.keys() - learning:
            assert module_of(name) in moving or torch.equal(weights[name], initial[name]), name


@pytest.mark.slow
@pytest.mark.compiler
def test_a_gradient_that_is_not_finite_under_deepspeed_stops_before_the_update(toy_config, tmp_path):
    """Though the loss is finite."""
    config = toy_config(epochs=2.4, checkpoint_steps=1, clip=None, deepspeed_stage=2)
    file = tmp_path / "config.yaml"
    write_yaml(file, to_dict(config))
    script = Path(__file__).with_name("with_bad_gradients.py")
    line = [str(script) if part == str(SCRIPT) else part for part in command(file, deepspeed_stage=2)]
    done = run(line, cwd=tmp_path)
    assert done.returncode == 1
    assert "loss or gradient is not finite at step 3 in a batch with" in done.stderr
    assert (config.directory / "state" / "latest").read_text() == "step-00000002\n"
    assert len(json.loads((config.directory / "non-finite-0.json").read_text())["keys"]) == 16


@pytest.mark.slow
@pytest.mark.compiler
def test_offloaded_optimizer_learns_at_our_rates(toy_config, train, launch, alone):
    """Optimizer state in CPU memory: the same updates, so the schedule reaches the optimizer that is used. Low-rank
    updates and a decay over blocks, whose rates differ, go the same way."""
    keys = {**KEYS, "mode": "lora", "layer_decay": 0.5}
    reference = alone(toy_config(**keys, experiment="alone"), train)
    config = toy_config(**keys, experiment="offload", deepspeed_stage=2, deepspeed_offload=True)
    done = launch(config, 2)
    assert done.returncode == 0, done.stderr
    assert_same(reference, outcome(config))


@pytest.mark.slow
def test_a_launch_that_silently_starts_fewer_processes_is_refused(toy_config, tmp_path):
    file = tmp_path / "config.yaml"
    write_yaml(file, to_dict(toy_config()))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--quiet"]
    done = run([*accelerate, str(SCRIPT), "--config", str(file), "processes=2"])
    assert done.returncode != 0
    assert "1 processes work together, WORLD_SIZE is 1, 2 were asked for" in done.stderr
    assert not toy_config().directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before training", "during training"])
def test_a_signal_to_the_launcher_stops_the_run_with_its_state(toy_config, tmp_path, moment):
    config = toy_config(epochs=1e6, log_every=1)
    file = tmp_path / "config.yaml"
    write_yaml(file, to_dict(config))
    with started([sys.executable, "-m", "trainer.launch", f"finetune={file}"]) as process:
        launcher = psutil.Process(process.pid)
        ready = launcher.children if moment == "before training" else lambda: read_metrics(config.directory)
        wait_until(lambda: ready() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(200) == 85
    assert (config.directory / "state" / "latest").exists()
    assert not (config.directory / "stop").exists()


def test_a_stop_request_that_a_beginning_run_has_removed_is_made_again(tmp_path, monkeypatch):
    """As one that came before it, by a clock that is behind."""
    code = (
        "import os, pathlib, signal, time\n"
        "stop = pathlib.Path('stop')\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "for told in range(2):\n"
        "    while not stop.exists(): time.sleep(0.02)\n"
        "    if told: pathlib.Path('stopped.json').touch()\n"
        "    stop.unlink()\n"
        "time.sleep(0.5)\n"
    )
    monkeypatch.setattr(launcher, "REPEAT", 0.1)
    monkeypatch.chdir(tmp_path)
    assert launcher.start([sys.executable, "-c", code], tmp_path) == 85
    assert not (tmp_path / "stop").exists()


def test_a_launch_that_fails_is_not_taken_for_an_earlier_one_that_stopped(toy_config, tmp_path, monkeypatch):
    config = toy_config()
    write_yaml(tmp_path / "config.yaml", to_dict(config))
    config.directory.mkdir(parents=True)
    (config.directory / "stopped.json").touch()
    monkeypatch.setattr(launcher, "command", lambda *_, **__: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit) as ended:
        launcher.launch(launcher.Launch(tmp_path / "config.yaml"))
    assert ended.value.code == 3


def test_what_a_command_of_a_test_starts_ends_at_its_time_limit(tmp_path):
    """Also a process with a session of its own, as a launcher's are."""
    inner = "import os, time; open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'ready'); time.sleep(500)"
    outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    with (
        pytest.raises(subprocess.TimeoutExpired),
        started([sys.executable, "-c", outer, inner], cwd=tmp_path) as process,
    ):
        wait_until((tmp_path / "ready").exists)
        process.wait(0.1)
    wait_until(lambda: not psutil.pid_exists(int((tmp_path / "ready").read_text())))


def test_deepspeed_without_a_launcher_says_so(toy_config, train, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match=r"python -m trainer\.launch"):
        train(toy_config(deepspeed_stage=2))
