"""A finished run is used again only while it belongs to the data, the card and the weights of now."""

import json
import shutil

import pytest

from data_shards.command import InputError
from data_shards.files import write_json
from trainer.finetune import finetune
from trainer.finished import changes, read_result


@pytest.fixture
def finished(toy_config, toy_sets, tmp_path):
    """Function (**result) → the config of a finished run on copies of the toy sets, with that result.json."""

    def make(**result):
        for name in ("train", "validation"):
            shutil.copytree(toy_sets[name], tmp_path / name, dirs_exist_ok=True)
        config = toy_config(train=tmp_path / "train", validation=tmp_path / "validation")
        write_json(config.directory / "result.json", result)
        return config

    return make


def digest(path) -> str:
    return json.loads((path / "manifest.json").read_text())["digest"]


def pack_again(path, other) -> None:
    shutil.rmtree(path)
    shutil.copytree(other, path)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_finished_run_is_refused_when_other_data_lie_at_the_same_path(finished, toy_sets, train, capsys, name):
    config = finished(data={each: digest(toy_sets[each]) for each in ("train", "validation")})
    assert train(config) == read_result(config)
    finetune(config)
    assert "is finished already" in capsys.readouterr().out
    pack_again(getattr(config, name), toy_sets["test"])
    for use in (train, finetune):
        with pytest.raises(InputError, match=f"is finished, but {name} of its data has changed from .*delete the run"):
            use(config)
    pack_again(getattr(config, name), toy_sets[name])
    assert train(config) == read_result(config)


def test_what_a_result_does_not_say_and_what_is_gone_is_not_compared(finished, tmp_path):
    config = finished()
    assert read_result(config) == {}
    shutil.rmtree(tmp_path / "train")
    config = finished(data={"train": "a", "validation": digest(tmp_path / "validation")}, card={"layer": "token"})
    shutil.rmtree(tmp_path / "train")
    assert list(changes(config, {"data": {"train": "a"}})) == []
    with pytest.raises(InputError, match="layer of its card tiny_vit has changed from token to pooled"):
        read_result(config)


def test_a_finished_run_on_other_weights_in_memory_is_refused(finished):
    config = finished(weights={"sha256": "a"})
    assert read_result(config, "a") == read_result(config)
    with pytest.raises(InputError, match="sha256 of its initial weights has changed from a to b"):
        read_result(config, "b")
