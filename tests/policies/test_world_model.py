"""Training of the language model of the controlled world, at toy size; what the shipped weights are is tested below."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json
from rm_methods.methods.masked_language import mask_token
from rm_methods.policies import world_model
from rm_methods.policies.sft import IGNORED
from rm_methods.policies.world_model import (
    WorldModelSettings,
    end_states,
    probe_pairs,
    reactions_named,
    token_ids,
    train_world_model,
)
from rm_methods.preferences.world.conversations import VERDICTS, comparisons
from rm_methods.reward_models.backbones import WORLD_MODEL, load_tokenizer
from rm_methods.reward_models.joint_reader import DecoderReader
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


@pytest.fixture(scope="module", params=["bidirectional", "joint"])
def masked(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_model, "_NAMED_TEXTS", 30)
        record = train_world_model(TOY, 3, folder / "model", folder / "work", kind=request.param)
    return request.param, folder / "model", record


def test_models_that_fill_masks_have_the_shipped_tokenizer_and_a_curve(masked):
    kind, folder, record = masked
    assert record["kind"] == kind
    assert json.loads(json.dumps(record)) == read_json(folder / "training.json")
    assert [row["epoch"] for row in record["reactions"]] == [1, 2]
    assert all(0 <= row["named_right"] <= 1 for row in record["reactions"])
    assert file_hash(folder / "tokenizer.json") == file_hash(WORLD_MODEL / "tokenizer.json")


def test_a_stopped_training_fills_the_same_masks(masked, tmp_path, monkeypatch):
    """Stopped after the first epoch and continued, the weights are those of the training in one go."""
    kind, _, record = masked
    monkeypatch.setattr(world_model, "_NAMED_TEXTS", 30)
    measure = world_model.reactions_named
    calls = []

    def stops_in_the_second_epoch(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(world_model, "reactions_named", stops_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train_world_model(TOY, 3, tmp_path / "model", tmp_path / "work", kind=kind)
    again = train_world_model(TOY, 3, tmp_path / "model", tmp_path / "work", kind=kind)
    assert again["sha256"] == record["sha256"]
    assert again["reactions"] == record["reactions"]


def test_reactions_count_as_much_as_the_rest_by_hand():
    """Even logits over 4 tokens cost log 4 a token; a sure and right one costs nothing."""
    texts = list(comparisons(1, 0))
    task = world_model.MaskedTask(None, pretrained_tokenizer(WORLD_MODEL), texts, texts, seed=0)
    logits = torch.zeros(2, 3, 4)
    logits[1, 0, 2] = 1e4
    of_text = [[1, 2, IGNORED], [2, IGNORED, IGNORED]]
    of_reactions = [[IGNORED, IGNORED, 3], [IGNORED] * 3]
    loss = task.loss(SimpleNamespace(logits=logits), torch.tensor([of_text, of_reactions]))
    assert loss.item() == pytest.approx(math.log(4) * 2 / 3 + math.log(4))


def test_the_parts_of_the_loss_are_the_text_and_the_reaction():
    """With masks a token is predicted at its position, without at the one before."""
    tokenizer = pretrained_tokenizer(WORLD_MODEL)
    texts = list(comparisons(40, 0))
    ids = token_ids(tokenizer, texts)
    rows = [{"input_ids": row, "index": index} for index, row in enumerate(ids)]
    masked = world_model.MaskedTask(None, tokenizer, texts, texts[:1], seed=0)
    causal = world_model.CausalTask(None, tokenizer, texts, 1)
    for task, earlier in ((masked, 0), (causal, 1)):
        labels = task.collate(rows)["labels"]
        for index, row in enumerate(ids):
            first = len(token_ids(tokenizer, [texts[index][:-1]])[0])
            of_text, of_reaction = labels[:, index].tolist()
            assert {IGNORED} == set(of_text[first - earlier :]) == set(of_reaction[: first - earlier])
            predicted = [token for token in of_reaction if token != IGNORED]
            assert set(predicted) <= set(row[first:])
            if task is causal:
                assert of_text[: first - 1] == row[1:first]
                assert predicted == row[first:]


class AlwaysToken:
    """Predicts a given token everywhere."""

    def __init__(self, token, vocabulary):
        self.token = token
        self.vocabulary = vocabulary

    def __call__(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        logits[..., self.token] = 1
        return SimpleNamespace(logits=logits)


def test_reactions_named_by_hand():
    """A model that always says "First" is right where the first response is the better one."""
    tokenizer = pretrained_tokenizer(WORLD_MODEL)
    texts = list(comparisons(40, 5))
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in VERDICTS)
    assert first != second
    share = sum(text[-1]["content"] == VERDICTS[0] for text in texts) / 40
    assert 0 < share < 1
    assert reactions_named(AlwaysToken(first, len(tokenizer)), tokenizer, texts) == pytest.approx(share)
    assert reactions_named(AlwaysToken(second, len(tokenizer)), tokenizer, texts) == pytest.approx(1 - share)


def test_masks_hide_a_fifth_of_the_text_and_most_reactions():
    tokenizer = pretrained_tokenizer(WORLD_MODEL)
    texts = list(comparisons(300, 0))
    ids = token_ids(tokenizer, texts)
    task = world_model.MaskedTask(None, tokenizer, texts, texts[:1], seed=0)
    special = set(tokenizer.all_special_ids)
    asked, masked, tokens = 0, 0, 0
    for index, row in enumerate(ids):
        seen, target = (x.tolist() for x in task._masked(row, index))
        read = task.read[index]
        assert row[read - 1] == tokenizer.eos_token_id
        assert len(seen) == len(target)
        for position, token in enumerate(target):
            if token == IGNORED:
                assert seen[position] == row[position]
            else:
                assert (seen[position], token) == (task.mask_id, row[position])
                assert token not in special
        if len(seen) < len(row):
            asked += 1
            assert len(seen) == read + 1
            assert target[read] == row[read]
        masked += sum(token != IGNORED for token in target[:read])
        tokens += read
    assert asked / 300 == pytest.approx(0.6, abs=0.08)
    assert masked / tokens == pytest.approx(0.2, abs=0.03)
    first_epoch = [task._masked(row, index)[0].tolist() for index, row in enumerate(ids[:5])]
    task.epoch = 1
    assert first_epoch != [task._masked(row, index)[0].tolist() for index, row in enumerate(ids[:5])]


def test_comparisons_are_the_rows_that_joint_models_read():
    """With one mask in place of the verdict."""
    tokenizer = load_tokenizer(WORLD_MODEL, 512)
    texts = list(comparisons(20, 0))
    mask = mask_token(tokenizer.tokenizer)
    expected = [[*row, mask] for row in token_ids(tokenizer.tokenizer, [text[:-1] for text in texts])]
    pairs = [(text[:-3], (text[-3]["content"], text[-2]["content"])) for text in texts]
    rows = [item.sequences[0].tolist() for item in DecoderReader(tokenizer, mask).encode(pairs)]
    assert rows == expected


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
