"""Training of the language model of the controlled world, at toy size; what the shipped weights are is tested below."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json
from rm_methods.policies import world_model
from rm_methods.policies.sft import IGNORED
from rm_methods.policies.world_model import (
    WorldModelSettings,
    end_states,
    probe_pairs,
    token_ids,
    train_world_model,
)
from rm_methods.preferences.world.conversations import conversations
from rm_methods.reward_models.backbones import WORLD_MODEL
from rm_methods.reward_models.loading import pretrained_tokenizer
from rm_methods.reward_models.template_probe import RefusedConversation, render

pytestmark = pytest.mark.process

TOY = WorldModelSettings(
    texts=64, epochs=2, vocabulary_size=400, hidden_size=16, intermediate_size=24, layers=2, heads=2, probe_pairs=60
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world_model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_model, "_PROBE_TEST_PAIRS", 20)
        record = train_world_model(TOY, 3, folder / "model", folder / "work")
    return folder / "model", record


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_the_record_describes_the_files(trained):
    folder, record = trained
    assert json.loads(json.dumps(record)) == read_json(folder / "training.json")
    assert record["seed"] == 3
    assert record["settings"]["hidden_size"] == 16
    assert {name: file_hash(folder / name, length=64) for name in record["sha256"]} == record["sha256"]
    assert record["parameters"] == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())


def test_the_curves_have_every_epoch_and_the_loss_falls(trained):
    _, record = trained
    assert [row["epoch"] for row in record["probe"]] == [1, 2]
    assert all(len(row["accuracy_by_layer"]) == TOY.layers for row in record["probe"])
    assert record["loss"][0][0] == 1


def test_equal_seeds_give_equal_weights(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(world_model, "_PROBE_TEST_PAIRS", 20)
    again = train_world_model(TOY, 3, tmp_path / "model", tmp_path / "work")
    assert again["sha256"] == trained[1]["sha256"]


def test_a_training_may_start_from_an_earlier_one(trained, tmp_path, monkeypatch):
    """Its weights and tokenizer are where the second training begins: at rate 0 they stay, on other texts."""
    monkeypatch.setattr(world_model, "_PROBE_TEST_PAIRS", 20)
    folder, first = trained
    still = replace(TOY, learning_rate=0.0, epochs=1)
    record = train_world_model(still, 4, tmp_path / "model", tmp_path / "work", start=folder)
    assert record["started_from"] == json.loads(json.dumps(first))
    for name in ("model.safetensors", "tokenizer.json"):
        assert record["sha256"][name] == first["sha256"][name]
    assert record["tokens_per_epoch"] != first["tokens_per_epoch"]


def test_one_end_token_closes_each_turn_and_nothing_follows_it(trained):
    folder, _ = trained
    _, tokenizer = loaded(folder)
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert render(tokenizer, conversation) == "<bos>a<end>b<end>"
    assert render(tokenizer, conversation[:1], add_generation_prompt=True) == "<bos>a<end>"
    with pytest.raises(RefusedConversation, match="no system turns"):
        render(tokenizer, [{"role": "system", "content": "x"}, *conversation])


def test_states_are_those_at_the_end_of_the_response_whatever_the_batch(trained):
    folder, _ = trained
    model, tokenizer = loaded(folder)
    pairs = probe_pairs(6)
    assert all(pair.meta["gold_chosen"] != pair.meta["gold_rejected"] for pair in pairs)
    batched = end_states(model, tokenizer, pairs, batch_size=5)
    assert batched.shape == (6, 2, TOY.layers, TOY.hidden_size)
    (ids,) = token_ids(tokenizer, [[*pairs[4].prompt, {"role": "assistant", "content": pairs[4].rejected}]])
    assert ids[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        alone = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    np.testing.assert_allclose(batched[4, 1, -1], alone, atol=1e-5)


def test_reactions_count_as_much_as_the_rest_by_hand():
    """Even logits over 4 tokens cost log 4 a token; a sure and right one costs nothing."""
    task = world_model.CausalTask(None, pretrained_tokenizer(WORLD_MODEL), list(conversations(1, 0)), 1)
    logits = torch.zeros(2, 3, 4)
    logits[1, 0, 2] = 1e4
    of_text = [[1, 2, IGNORED], [2, IGNORED, IGNORED]]
    of_reactions = [[IGNORED, IGNORED, 3], [IGNORED] * 3]
    loss = task.loss(SimpleNamespace(logits=logits), torch.tensor([of_text, of_reactions]))
    assert loss.item() == pytest.approx(math.log(4) * 2 / 3 + math.log(4))


def test_the_parts_of_the_loss_are_the_text_and_the_reaction():
    tokenizer = pretrained_tokenizer(WORLD_MODEL)
    texts = list(conversations(40, 0))
    task = world_model.CausalTask(None, tokenizer, texts, 1)
    labels = task.collate([{"input_ids": row, "index": index} for index, row in enumerate(task.ids)])["labels"]
    for index, row in enumerate(task.ids):
        first = len(token_ids(tokenizer, [texts[index][:-1]])[0])
        of_text, of_reaction = labels[:, index].tolist()
        assert {IGNORED} == set(of_text[first - 1 :]) == set(of_reaction[: first - 1])
        assert of_text[: first - 1] == row[1:first]
        assert [token for token in of_reaction if token != IGNORED] == row[first:]


def test_the_shape_of_the_start_cannot_be_changed(trained, tmp_path):
    wider = replace(TOY, hidden_size=32, layers=3)
    with pytest.raises(UserError, match=r"hidden_size \(32, not 16\), layers \(3, not 2\)"):
        train_world_model(wider, 4, tmp_path / "model", tmp_path / "work", start=trained[0])


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", None, r"config\.json has the SHA-256"),
        ("tokenizer.json", None, r"tokenizer\.json has the SHA-256"),
        ("training.json", '{"sha256": [1]}', r"training\.json: `sha256` must be the hash of each file"),
        ("training.json", "[]", r"training\.json: `sha256` must be the hash of each file"),
    ],
)
def test_a_damaged_start_is_refused(trained, tmp_path, file, content, named):
    start = tmp_path / "start"
    shutil.copytree(trained[0], start)
    changed = start / file
    changed.write_text(changed.read_text() + " " if content is None else content)
    with pytest.raises(UserError, match=named):
        train_world_model(TOY, 4, tmp_path / "model", tmp_path / "work", start=start)


def test_a_folder_with_other_files_is_not_replaced_by_a_model(tmp_path):
    (tmp_path / "precious.txt").touch()
    with pytest.raises(UserError, match="would be removed"):
        train_world_model(TOY, 4, tmp_path, tmp_path / "work")
    assert (tmp_path / "precious.txt").exists()


def test_settings_may_be_changed_by_name():
    changed = WorldModelSettings.changed(["hidden_size=128", "learning_rate=5e-3"])
    assert (changed.hidden_size, changed.learning_rate, changed.layers) == (128, 0.005, WorldModelSettings().layers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hiden_size=128", "Did you mean 'hidden_size'"),
        ("layers=two", "write layers=NUMBER, with a positive int"),
        ("epochs=0", "positive int"),
        ("weight_decay=nan", "positive float"),
        ("hidden_size=97", "not an even multiple of heads"),
        ("schedule=linear", "no setting"),
    ],
)
def test_wrong_settings_are_refused(text, expected):
    with pytest.raises(UserError, match=expected):
        WorldModelSettings.changed([text])


def test_the_probe_reads_what_is_in_the_states_and_nothing_else():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(1200, 2, 8))
    assert world_model._probe_accuracy(states, 1000) == pytest.approx(0.5, abs=0.12)
    states[:, 0, 3] += 4
    assert world_model._probe_accuracy(states, 1000) > 0.97
