"""The weights of the controlled world's language models are what their records describe."""

import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json
from rm_methods.policies.world_model import (
    RECORD,
    TEMPLATE,
    CausalTask,
    WorldModelSettings,
    make_tokenizer,
    probe,
    probe_pairs,
    token_ids,
)
from rm_methods.preferences.world.conversations import conversations
from rm_methods.reward_models import backbones
from rm_methods.reward_models.backbones import WORLD_MODEL, WORLD_MODELS, load_classifier, prepare_backbone
from tests.conftest import experiment_config

pytestmark = pytest.mark.process
# The commands of the models' README files.
SETTINGS = WorldModelSettings()
WEAK = WorldModelSettings.changed(["epochs=3"])


@pytest.fixture(scope="module")
def record():
    return read_json(WORLD_MODEL / RECORD)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WORLD_MODEL)


@pytest.fixture(scope="module")
def model():
    return LlamaForCausalLM.from_pretrained(WORLD_MODEL).eval()


def test_the_record_is_of_the_command_and_of_these_files(record):
    assert record["settings"] == asdict(SETTINGS) | {"adam_betas": list(SETTINGS.adam_betas)}
    assert (record["seed"], record["started_from"]) == (0, None)
    assert [row["epoch"] for row in record["probe"]] == list(range(1, SETTINGS.epochs + 1))
    assert {name: file_hash(WORLD_MODEL / name, length=64) for name in record["sha256"]} == record["sha256"]
    assert "model.safetensors" in record["sha256"]
    written = {*record["sha256"], RECORD, "README.md"}
    assert {file.name for file in WORLD_MODEL.iterdir() if file.name != "__pycache__"} == written


def test_the_tensors_have_the_shapes_of_the_settings(record):
    config = LlamaConfig.from_pretrained(WORLD_MODEL)
    sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    assert sizes == (SETTINGS.hidden_size, SETTINGS.intermediate_size, SETTINGS.layers, SETTINGS.heads)
    assert not config.tie_word_embeddings
    tensors = load_file(WORLD_MODEL / "model.safetensors")
    expected = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in tensors.values()) == record["parameters"]
    assert (WORLD_MODEL / "model.safetensors").stat().st_size < 2.5e6


def test_the_tokenizer_is_the_one_of_the_texts(record, tokenizer):
    again = make_tokenizer(SETTINGS)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == record["vocabulary"]
    assert tokenizer.chat_template == TEMPLATE
    texts = list(conversations(50, 7))
    assert token_ids(again, texts) == token_ids(tokenizer, texts)


def test_the_curves_end_where_the_model_is(record, model, tokenizer):
    """On conversations that it never saw, the loss is that of the last training steps."""
    texts = list(conversations(200, 12345))
    task = CausalTask(model, tokenizer, texts, 1)
    batch = task.collate([{"input_ids": row, "index": index} for index, row in enumerate(token_ids(tokenizer, texts))])
    labels = batch.pop("labels")
    with torch.no_grad():
        loss = task.loss(model(**batch), labels)
    assert float(loss) == pytest.approx(record["loss"][-1][1], abs=0.05)
    assert record["probe"][-1]["accuracy_by_layer"][-1] > 0.95


def test_the_model_compares(model, tokenizer):
    assert probe(model, tokenizer, probe_pairs(700), 500)[-1] > 0.9


def test_it_is_a_backbone(tmp_path, tokenizer):
    config = experiment_config(tmp_path, backbone={"source": "world"})
    record = prepare_backbone(config["backbone"], [], tmp_path / "backbone")
    assert record["template"]["ends_with"] == "<end>"
    classifier = load_classifier(tmp_path / "backbone", config["backbone"], seed=0)
    weights = load_file(WORLD_MODEL / "model.safetensors")
    torch.testing.assert_close(classifier.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


def changed_copy(folder, change):
    """A copy of the shipped model with a change of its tensors."""
    shutil.copytree(WORLD_MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_files_that_do_not_fit_the_record_are_refused_all_at_once(tmp_path, monkeypatch):
    config = experiment_config(tmp_path, backbone={"source": "world"})

    def refusal(folder):
        monkeypatch.setitem(backbones.WORLD_MODELS, "world", folder)
        with pytest.raises(UserError) as error:
            prepare_backbone(config["backbone"], [], tmp_path / "backbone")
        assert not (tmp_path / "backbone").exists()
        return str(error.value)

    folder = changed_copy(tmp_path / "values", lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    (folder / "config.json").unlink()
    text = refusal(folder)
    assert f"{folder}: the model is not the one of its record training.json. " in text
    assert "config.json is missing" in text
    assert "model.safetensors has the SHA-256" in text
    assert "tokenizer.json" not in text
    (folder / RECORD).unlink()
    assert "training.json is missing" in refusal(folder)


def test_a_changed_model_is_a_folder_like_any_other(tmp_path):
    folder = changed_copy(tmp_path / "changed", lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    config = experiment_config(tmp_path, backbone={"source": str(folder)})
    assert prepare_backbone(config["backbone"], [], tmp_path / "backbone")["source"] == str(folder)
    incomplete = changed_copy(tmp_path / "incomplete", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        prepare_backbone(config["backbone"] | {"source": str(incomplete)}, [], tmp_path / "other")


def test_the_weak_model_is_what_its_record_describes_and_hardly_compares(tokenizer):
    folder = WORLD_MODELS["world_weak"]
    record = read_json(folder / RECORD)
    assert record["settings"] == asdict(WEAK) | {"adam_betas": list(WEAK.adam_betas)}
    assert (record["seed"], record["started_from"]) == (1, None)
    assert [row["epoch"] for row in record["probe"]] == list(range(1, WEAK.epochs + 1))
    assert {name: file_hash(folder / name, length=64) for name in record["sha256"]} == record["sha256"]
    assert file_hash(folder / "tokenizer.json") == file_hash(WORLD_MODEL / "tokenizer.json")
    assert 0.65 < record["probe"][-1]["accuracy_by_layer"][-1] < 0.9
    # Fitted on fewer pairs than the record's, the probe reads less; the other model is still above 90%.
    assert probe(LlamaForCausalLM.from_pretrained(folder).eval(), tokenizer, probe_pairs(700), 500)[-1] < 0.8


def test_a_student_from_scratch_has_the_shape_and_tokenizer_and_weights_of_its_seed(tmp_path, tokenizer):
    config = experiment_config(tmp_path, backbone={"source": "world_scratch"})
    prepare_backbone(config["backbone"], [], tmp_path / "backbone")
    assert file_hash(tmp_path / "backbone" / "tokenizer.json") == file_hash(WORLD_MODEL / "tokenizer.json")
    shipped = load_file(WORLD_MODEL / "model.safetensors")
    models = [load_classifier(tmp_path / "backbone", config["backbone"], seed=seed).state_dict() for seed in (0, 0, 1)]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert models[0][name].shape == shipped[name].shape
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])
    assert not torch.equal(models[0][name], shipped[name])
