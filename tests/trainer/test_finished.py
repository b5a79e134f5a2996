"""A finished run is used again only while it belongs to the data, the card and the weights of now."""

import json
import shutil

import pytest

from data_shards.command import InputError
from data_shards.files import write_json
from trainer.finetune import finetune
from trainer.finished import changes, read_result
from trainer.loop import Stopped
from trainer.predict import score


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


@pytest.mark.parametrize("before", ["mean: [0.5", "input_size: 32"])
def test_a_card_is_part_of_a_run(toy_config, toy_cards, toy_sets, train, tmp_path, before):
    """A run whose card has changed is neither gone on with nor taken for finished nor scored."""
    cards = tmp_path / "cards.yaml"
    cards.write_text(toy_cards.read_text())
    config = toy_config(epochs=1.6, cards=cards)

    def stop(row):
        (config.directory / "stop").touch()

    with pytest.raises(Stopped):
        train(config, stop)
    changed = toy_cards.read_text().replace(before, before.replace("0.5", "0.4").replace("32", "48"))
    cards.write_text(changed)
    name = before.split(":")[0]
    with pytest.raises(InputError, match=f"card's {name} was .* and is .*; restore it"):
        train(config)
    cards.write_text(toy_cards.read_text())
    result = train(config)
    score(config.directory, {"test": toy_sets["test"]})
    cards.write_text(changed)
    with pytest.raises(InputError, match=f"is finished, but {name} of its card tiny_vit has changed from"):
        train(config)
    score(config.directory, {"test": toy_sets["test"]})  # what was scored with the right card stays
    for options in ({}, {"features": lambda _: pytest.fail("they are of the changed card")}):
        with pytest.raises(InputError, match=f"{name} of its card tiny_vit has changed from .* since it was trained"):
            score(config.directory, {"other": toy_sets["validation"]}, **options)
    older = {key: value for key, value in result.items() if key != "card"}
    write_json(config.directory / "result.json", older)
    assert train(config) == older
    score(config.directory, {"other": toy_sets["validation"]})


def test_a_finished_run_on_other_weights_in_memory_is_refused(finished):
    config = finished(weights={"sha256": "a"})
    assert read_result(config, "a") == read_result(config)
    with pytest.raises(InputError, match="sha256 of its initial weights has changed from a to b"):
        read_result(config, "b")
