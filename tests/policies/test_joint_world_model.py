"""Joint language models of the controlled world: the fading mask, what is predicted, and what is measured."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rm_methods.files import file_hash, read_json
from rm_methods.policies import world_model
from rm_methods.policies.joint_world_model import JointTask, joint_ids, padded_rows, told
from rm_methods.policies.sft import IGNORED
from rm_methods.policies.world_model import KINDS, WorldModelSettings, train_world_model
from rm_methods.preferences.world.conversations import comparisons, reaction_openings
from rm_methods.preferences.world.vocabulary import SATISFIED
from rm_methods.reward_models.backbones import WORLD_JOINT, WORLD_MODEL, load_tokenizer
from rm_methods.reward_models.joint_reader import DecoderReader
from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

pytestmark = pytest.mark.process

FEW = WorldModelSettings(texts=48, epochs=2)


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained_tokenizer(WORLD_MODEL)


def language_model():
    from transformers import AutoModelForCausalLM

    return pretrained_model(AutoModelForCausalLM, WORLD_MODEL)[0].eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_model, "_HELD_OUT_COMPARISONS", 20)
        record = train_world_model(FEW, 3, folder / "model", folder / "work", kind="joint")
    return folder / "model", record


def test_a_joint_model_starts_from_the_shipped_one_and_has_a_curve(trained):
    folder, record = trained
    assert record["kind"] == "joint"
    assert json.loads(json.dumps(record)) == read_json(folder / "training.json")
    assert record["started_from"] == read_json(WORLD_MODEL / "training.json")
    assert [row["epoch"] for row in record["reactions"]] == [1, 2]
    assert record["comparisons_told"] == 20
    assert all(0 <= row[name] <= 1 for row in record["reactions"] for name in ("named_right", "ordered_right"))
    assert file_hash(folder / "tokenizer.json") == file_hash(WORLD_MODEL / "tokenizer.json")


def test_a_stopped_training_continues_where_the_mask_was(trained, tmp_path, monkeypatch):
    """Stopped after the first epoch and continued, the weights are those of the training in one go."""
    monkeypatch.setattr(world_model, "_HELD_OUT_COMPARISONS", 20)
    measure = JointTask.measure
    calls = []

    def stops_in_the_second_epoch(task):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(task)

    with monkeypatch.context() as patch:
        patch.setattr(JointTask, "measure", stops_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train_world_model(FEW, 3, tmp_path / "model", tmp_path / "work", kind="joint")
    again = train_world_model(FEW, 3, tmp_path / "model", tmp_path / "work", kind="joint")
    assert again["sha256"] == trained[1]["sha256"]
    assert again["reactions"] == trained[1]["reactions"]


@pytest.mark.parametrize(("progress", "lowered_by"), [(0.0, 8.0), (0.25, 4.0), (0.5, 0.0), (1.0, 0.0)])
def test_the_mask_fades_over_the_first_half(tokenizer, progress, lowered_by):
    """Later tokens of a row are lowered, padding is hidden."""
    task = JointTask(language_model(), tokenizer, list(comparisons(1, 0)), [])
    task.progress = progress
    is_token = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]
    faded = task._fade(None, (), {"attention_mask": is_token})
    if not lowered_by:
        assert faded is None
        return
    _, kwargs = faded
    low = -lowered_by
    hidden = torch.finfo(torch.float32).min
    assert kwargs["attention_mask"][:, 0].tolist() == [
        [[0, low, low], [0, 0, low], [0, 0, 0]],
        [[0, low, hidden], [0, 0, hidden], [0, 0, hidden]],
    ]


def test_training_begins_near_the_causal_model_and_ends_without_its_mask(tokenizer):
    """Between, the logits move from those of a causal mask to those without one."""
    model = language_model()
    rows, _ = joint_ids(tokenizer, list(comparisons(2, 0)))
    batch = padded_rows([min(rows, key=len)], tokenizer.pad_token_id)
    with torch.no_grad():
        causal = model(input_ids=batch["input_ids"]).logits
        open_mask = model(**batch).logits
        task = JointTask(model, tokenizer, list(comparisons(1, 0)), [])
        distances = []
        for progress in (0.0, 0.2, 0.4, 0.5):
            task.progress = progress
            distances.append(float((model(**batch).logits - causal).norm() / (open_mask - causal).norm()))
    assert distances[0] < 0.05
    assert distances == sorted(distances)
    assert distances[-1] == pytest.approx(1)


def test_only_the_ends_of_responses_predict(tokenizer):
    texts = list(comparisons(30, 0))
    task = JointTask(language_model(), tokenizer, texts, [])
    batch = task.collate([{"input_ids": row, "index": index} for index, row in enumerate(task.ids)])
    satisfied, flawed = reaction_openings(tokenizer)
    assert len({satisfied, *flawed}) == 4
    for text, row, labels in zip(texts, batch["input_ids"], batch["labels"], strict=True):
        (columns,) = (labels != IGNORED).nonzero(as_tuple=True)
        assert row[columns].tolist() == [tokenizer.eos_token_id] * 2
        predicted = labels[columns].tolist()
        for response, end in zip(text.responses, columns.tolist(), strict=True):
            assert tokenizer.decode(row[:end]).endswith(response)
        assert [token == satisfied for token in predicted] == [reaction == SATISFIED for reaction in text.reactions]
        assert set(predicted) <= {satisfied, *flawed}


def test_comparisons_are_the_rows_that_joint_models_read(tokenizer):
    texts = list(comparisons(20, 0))
    items = DecoderReader(load_tokenizer(WORLD_MODEL, 512)).encode((text.prompt, text.responses) for text in texts)
    rows, ends = joint_ids(tokenizer, texts)
    assert [item.sequences[0].tolist() for item in items] == rows
    assert [(item.first_ends[0], len(item.sequences[0]) - 1) for item in items] == ends


class Says:
    """Predicts one token at the first place and another at the second, by what a function says of a row."""

    def __init__(self, tokenizer, logit):
        self.satisfied, (self.flawed, *_) = reaction_openings(tokenizer)
        self.end = tokenizer.eos_token_id
        self.vocabulary = len(tokenizer)
        self.logit = logit

    def __call__(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        logits[..., self.flawed] = 10
        for row, (ids, is_token) in enumerate(zip(input_ids, attention_mask[:, 0, 0], strict=True)):
            first, second = ((ids == self.end) & is_token).nonzero()[-2:, 0].tolist()
            logits[row, first, self.satisfied], logits[row, second, self.satisfied] = self.logit
        return SimpleNamespace(logits=logits)


def test_what_is_told_by_hand(tokenizer):
    texts = list(comparisons(70, 5))
    well = sum(reaction == SATISFIED for text in texts for reaction in text.reactions) / 140
    first_is_better = sum(text.better == 0 for text in texts) / 70
    assert 0 < well < 1
    assert 0 < first_is_better < 1
    always = told(Says(tokenizer, (20.0, 19.0)), tokenizer, texts)
    assert always == {"named_right": pytest.approx(well), "ordered_right": pytest.approx(first_is_better)}
    never = told(Says(tokenizer, (1.0, 2.0)), tokenizer, texts)
    assert never == {"named_right": pytest.approx(1 - well), "ordered_right": pytest.approx(1 - first_is_better)}


def test_the_shipped_model_is_what_its_record_describes_and_compares():
    from transformers import AutoModelForCausalLM

    record = read_json(WORLD_JOINT / "training.json")
    settings = WorldModelSettings.changed([], "joint")
    assert settings == replace(WorldModelSettings(), **KINDS["joint"])
    assert record["settings"] == json.loads(json.dumps(vars(settings)))
    assert (record["kind"], record["seed"]) == ("joint", 0)
    assert record["started_from"] == read_json(WORLD_MODEL / "training.json")
    assert {name: file_hash(WORLD_JOINT / name, length=64) for name in record["sha256"]} == record["sha256"]
    assert file_hash(WORLD_JOINT / "tokenizer.json") == file_hash(WORLD_MODEL / "tokenizer.json")
    model = AutoModelForCausalLM.from_pretrained(WORLD_JOINT).eval()
    shares = told(model, pretrained_tokenizer(WORLD_JOINT), list(comparisons(200, 77)))
    last = record["reactions"][-1]
    assert shares["named_right"] == pytest.approx(last["named_right"], abs=0.05)
    assert last["named_right"] > 0.95
    assert shares["ordered_right"] == pytest.approx(last["ordered_right"], abs=0.08)
    assert last["ordered_right"] > 0.8
