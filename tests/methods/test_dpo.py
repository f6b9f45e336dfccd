import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.methods.registry import load_method_card
from rm_methods.model_card.facts import gather_facts
from rm_methods.preferences.pair import make_pair
from rm_methods.reward_models.backbones import prepare_backbone
from rm_methods.reward_models.implicit_reward_model import (
    REFERENCE_FILE,
    causal_weights,
    load_implicit_reward_model,
)
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model_folder import IMPLICIT_REWARD_RECORD, check_checksums, weights_hash
from rm_methods.scoring.implicit_reward import ImplicitRewardScorer
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.scorer import ScoringSettings, load_scorer, pair_items, pair_rewards
from rm_methods.sharing.contents import shared_contents, write_contents
from rm_methods.training.run import RunFiles, train
from rm_methods.validation import schema_problems
from tests.conftest import experiment_config
from tests.methods.ready import ready_to_train

SETTINGS = ScoringSettings(max_length=256, threads=1)


def made(prepared, tokenizer, pairs, folder, layout="packed", **settings):
    """(method, model, micro-batch, items) as training would make them."""
    return ready_to_train(prepared, tokenizer, pairs, folder, "dpo", layout, **settings)


def moved(model):
    """The model after its policy left the reference."""
    with torch.no_grad():
        model.backbone.embed_tokens.weight *= 1.5
        model.language_head.projection.weight *= 20
    return model


def language_model(model, part):
    """The language model of transformers with the weights of the policy or of the reference."""
    from transformers import AutoModelForCausalLM

    reward_model, head = {
        "policy": (model, model.language_head),
        "reference": (model.reference, model.reference_head),
    }[part]
    made_anew = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    assert not made_anew.model.load_state_dict(reward_model.backbone.state_dict()).missing_keys
    made_anew.lm_head.weight.data = head.projection.weight.data.clone()
    return made_anew


@torch.no_grad()
def log_ratios(model, items):
    """log pi - log pi_ref of each response token [items][2][tokens], each text alone, by a loop over its tokens."""
    ratios = []
    for item in items:
        texts = []
        for sequence in item.sequences:
            ids = torch.from_numpy(sequence.astype(np.int64))
            logits = [language_model(model, part)(ids[None]).logits[0].double() for part in ("policy", "reference")]
            policy, reference = (x.log_softmax(-1) for x in logits)
            texts.append([float((policy - reference)[t - 1, ids[t]]) for t in range(item.shared, len(ids))])
        ratios.append(texts)
    return ratios


def test_loss_by_hand(prepared, tokenizer, pairs, tmp_path, monkeypatch):
    """Policy -30 and -50, reference -35 and -45: the ratios are 5 and -5, and z = 0.1 * 10 = 1."""
    method, model, batch, _ = made(prepared, tokenizer, pairs[:1], tmp_path, beta=0.1)
    policy = torch.tensor([[-30.0, -50.0]], requires_grad=True)
    monkeypatch.setattr(
        "rm_methods.reward_models.implicit_reward_model.summed_log_probabilities", lambda *arguments: policy
    )
    method.reference = torch.tensor([[-35.0, -45.0]])
    loss = method.loss(model, batch).per_pair
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    # The gradient of the paper's section 4: -beta * sigmoid(-z) for the chosen response, and its opposite.
    loss.sum().backward()
    slope = 0.1 / (1 + math.e)
    assert policy.grad.tolist() == [pytest.approx([-slope, slope])]
    method.settings["smoothing"] = 0.2
    expected = 0.8 * math.log1p(math.exp(-1)) + 0.2 * math.log1p(math.exp(1))
    assert method.loss(model, batch).per_pair.item() == pytest.approx(expected)


@pytest.mark.parametrize("layout", ["packed", "plain"])
@pytest.mark.parametrize("average", [False, True])
def test_rewards_equal_a_loop_over_the_language_models(prepared, tokenizer, pairs, tmp_path, layout, average):
    method, model, batch, items = made(prepared, tokenizer, pairs[:3], tmp_path, layout, beta=0.5, average=average)
    moved(model).eval()
    combine = np.mean if average else np.sum
    expected = [[0.5 * combine(text) for text in texts] for texts in log_ratios(model, items)]
    actual = model(batch).rewards
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual.detach(), expected, atol=3e-4, rtol=1e-4)
    # The reference that was computed before the training is the one that the model computes.
    z = actual[:, 0] - actual[:, 1]
    torch.testing.assert_close(method.loss(model, batch).per_pair, torch.nn.functional.softplus(-z))


def test_training_starts_at_log_2_with_rewards_of_zero(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, _ = made(prepared, tokenizer, pairs[:8], tmp_path)
    assert model.training
    assert not model.reference.training
    torch.testing.assert_close(model(batch).rewards, torch.zeros(8, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(method.loss(model, batch).per_pair, torch.full((8,), math.log(2)), atol=1e-5, rtol=0)


def test_identical_responses_and_the_scale(prepared, tokenizer, pairs, tmp_path):
    same = [make_pair(p.prompt, p.chosen, p.chosen, split="train", source="made up") for p in pairs[:3]]
    method, model, batch, _ = made(prepared, tokenizer, same, tmp_path)
    loss = method.loss(moved(model), batch).per_pair
    torch.testing.assert_close(loss, torch.full((3,), math.log(2)), atol=1e-5, rtol=0)
    _, model, batch, _ = made(prepared, tokenizer, pairs[:3], tmp_path)
    once = moved(model)(batch).rewards
    model.beta *= 3
    torch.testing.assert_close(model(batch).rewards, 3 * once)
    # The same change of all logits changes no probability.
    with torch.no_grad():
        model.language_head.projection.weight += torch.randn(model.hidden_size)
    torch.testing.assert_close(model(batch).rewards, 3 * once, atol=1e-3, rtol=1e-3)


def test_only_the_policy_is_trained(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, _ = made(prepared, tokenizer, pairs[:4], tmp_path)
    method.loss(moved(model), batch).per_pair.sum().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == frozen
    assert {name.split(".")[0] for name in frozen} == {"reference", "reference_head", "classifier"}
    assert {name for name in frozen if name.startswith("classifier")} == {"classifier.score.weight"}


def test_a_prompt_that_is_cut_differently_is_counted_and_does_not_stop_the_training(prepared, pairs, tmp_path):
    from rm_methods.reward_models.backbones import load_tokenizer

    tokenizer = load_tokenizer(prepared[1], 60)
    long = make_pair([{"role": "user", "content": "paint " * 80}], "red", "blue " * 20, split="train", source="made up")
    method, model, batch, _ = made(prepared, tokenizer, [long, pairs[0]], tmp_path)
    assert torch.isfinite(method.loss(model, batch).per_pair).all()
    assert method.report() == {"pairs_with_different_prompts": 1}


@pytest.mark.parametrize("settings", [{"beta": 0}, {"beta": -1}, {"smoothing": 0.5}, {"average": 1}])
def test_impossible_settings_are_refused(settings):
    card = load_method_card("dpo")
    assert schema_problems(card.defaults() | settings, card.settings_schema)


def test_a_backbone_whose_language_model_has_other_tensors_is_refused(prepared, tokenizer, pairs, tmp_path):
    _, model, _, _ = made(prepared, tokenizer, pairs[:2], tmp_path)
    with pytest.raises(UserError, match=r"LlamaForCausalLM: 1 tensors .* such as model.other"):
        causal_weights(model.config, model.state_dict() | {"classifier.model.other": torch.zeros(1)})


@pytest.fixture(scope="module", params=["tied", "untied", "gpt2", "qwen2", "gpt_neox", "phi"])
def pretrained(request, prepared, pairs, tmp_path_factory):
    """(backbone folder, configuration) of a small language model that counts as pretrained."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    llama = AutoConfig.from_pretrained(prepared[1])
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    shape |= {"num_key_value_heads": 4}
    shape |= {name: getattr(llama, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    if request.param in ("tied", "untied"):
        config = AutoConfig.from_pretrained(prepared[1], tie_word_embeddings=request.param == "tied")
    elif request.param == "gpt2":
        ids = {name: value for name, value in shape.items() if name.endswith("_id")}
        config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=llama.vocab_size, **ids)
    else:
        config = AutoConfig.for_model(request.param, **shape)
    folder = tmp_path_factory.mktemp("pretrained")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(prepared[1]).save_pretrained(folder / "model")
    section = experiment_config(folder, backbone={"source": str(folder / "model"), "dtype": "float32"})
    prepare_backbone(section["backbone"], pairs, folder / "backbone")
    return folder / "backbone", section


def test_architectures_are_saved_and_loaded_whole(pretrained, tokenizer, pairs, tmp_path):
    from transformers import AutoModelForCausalLM

    folder, section = pretrained
    method, model, batch, items = made((None, folder, section), tokenizer, pairs[:3], tmp_path)
    with torch.no_grad():
        model.language_head.projection.weight *= 3
    method.export(model.eval(), tmp_path / "model")
    expected = model(batch).rewards
    assert expected.std() > 1e-3
    loaded = load_implicit_reward_model(tmp_path / "model")
    loaded.layout("auto")
    torch.testing.assert_close(loaded(batch).rewards, expected, atol=1e-5, rtol=1e-5)
    # What others load is the policy alone.
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.from_numpy(items[0].sequences[0].astype(np.int64))
    logs = policy(ids[None]).logits[0].log_softmax(-1)
    total = sum(logs[t - 1, ids[t]] for t in range(items[0].shared, len(ids)))
    reference = model.reference_log_probabilities(batch)[0, 0]
    torch.testing.assert_close(0.1 * (total - reference), expected[0, 0], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    """Folder of a small run; only for reading."""
    return trained(prepared, tmp_path_factory.mktemp("dpo"))


def trained(prepared, folder, **training):
    files = RunFiles(
        prepared[0],
        prepared[1],
        folder / "model",
        folder / "metrics.jsonl",
        folder / "summary.json",
        folder / "work",
    )
    training = {"epochs": 2, "learning_rate": 3e-3} | training
    config = experiment_config(folder, methods={"dpo": {}}, training=training)
    train(config, "dpo", 0, files, threads=1)
    return folder


@pytest.mark.process
def test_a_saved_run_scores_as_the_plain_scorer_of_policies(run, pairs, tmp_path):
    """Packed and in batches, from one folder, against each text alone, from two folders."""
    folder = run / "model"
    rewards = pair_rewards(load_scorer(folder, SETTINGS), pairs[:6])
    assert rewards.std() > 0.01
    for file in folder.iterdir():
        if file.name not in ("model.safetensors", "SHA256SUMS", IMPLICIT_REWARD_RECORD):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / REFERENCE_FILE).rename(tmp_path / "model.safetensors")
    plain = ImplicitRewardScorer.from_folders(folder, str(tmp_path), SETTINGS)
    np.testing.assert_allclose(rewards, 0.1 * pair_rewards(plain, pairs[:6]), atol=1e-4, rtol=1e-3)


@pytest.mark.process
def test_the_reference_is_the_start_and_the_policy_is_not(run, prepared, tokenizer, pairs, tmp_path):
    _, start, _, _ = made(prepared, tokenizer, pairs[:2], tmp_path)
    stored = load_file(run / "model" / REFERENCE_FILE)
    policy = load_file(run / "model" / "model.safetensors")
    assert stored.keys() == policy.keys()
    assert torch.equal(stored["model.embed_tokens.weight"], start.backbone.embed_tokens.weight)
    assert torch.equal(stored["lm_head.weight"], start.language_head.projection.weight)
    assert not [name for name in stored if torch.equal(stored[name], policy[name])]


@pytest.mark.process
def test_summary_and_validation_are_those_of_the_implicit_reward(run, prepared):
    summary = read_json(run / "summary.json")
    assert summary["weights_hash"] == weights_hash(run / "model")
    assert 0 < summary["metrics"]["validation_loss"] < 2
    assert not gather_facts(run / "model", summary).has_plain_weights
    assert "AutoModelForSequenceClassification" not in (run / "model" / "README.md").read_text()


@pytest.mark.process
def test_a_shared_copy_scores_alike(run, pairs, tmp_path):
    contents = shared_contents(run / "model", read_json(run / "summary.json"), "# A card\n")
    write_contents(contents, tmp_path / "copy")
    check_checksums(tmp_path / "copy")
    scores = [pair_rewards(load_scorer(folder, SETTINGS), pairs[:4]) for folder in (run / "model", tmp_path / "copy")]
    assert np.array_equal(*scores)


@pytest.mark.process
def test_a_damaged_folder_is_refused(run, tmp_path):
    folder = tmp_path / "model"
    write_contents(shared_contents(run / "model", read_json(run / "summary.json"), "# A card\n"), folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="reference has no effect"):
        load_scorer(folder, SETTINGS, options=ModelOptions(reference="none"))
    write_json(folder / IMPLICIT_REWARD_RECORD, {"beta": 0.1})
    with pytest.raises(UserError, match="keys beta and average"):
        load_implicit_reward_model(folder)
    for wrong in ({"beta": "0.1", "average": False}, {"beta": -1, "average": False}, {"beta": 0.1, "average": 0}):
        write_json(folder / IMPLICIT_REWARD_RECORD, wrong)
        with pytest.raises(UserError, match="beta must be a number above 0, and average true or false"):
            load_implicit_reward_model(folder)
    write_json(folder / IMPLICIT_REWARD_RECORD, {"beta": 0.1, "average": False})
    tensors = load_file(folder / REFERENCE_FILE)
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / REFERENCE_FILE)
    with pytest.raises(UserError, match=r"reference.safetensors: the reference of the policy cannot be read"):
        load_implicit_reward_model(folder)
    (folder / REFERENCE_FILE).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_implicit_reward_model(folder)


@pytest.mark.process
def test_with_lora_the_head_stays_and_the_reference_is_the_start(prepared, pairs, tmp_path):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
    folder = trained(prepared, tmp_path, lora=lora) / "model"
    stored = load_file(folder / REFERENCE_FILE)
    policy = load_file(folder / "model.safetensors")
    assert stored.keys() == policy.keys()
    changed = {name for name in stored if not torch.equal(stored[name], policy[name])}
    assert changed
    assert all("_proj" in name for name in changed)
    assert len(changed) == sum("_proj" in name for name in stored)
    assert pair_rewards(load_scorer(folder, SETTINGS), pairs[:4]).std() > 0


@pytest.mark.process
def test_validation_in_training_measures_the_saved_model(prepared, tmp_path):
    folder = trained(prepared, tmp_path, validation={"times": 2, "sets": ["validation"]})
    rows = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "validation/" in line]
    last = json.loads(rows[-1])
    accuracy = next(value for key, value in last.items() if key.endswith("/accuracy") and key.startswith("validation/"))
    assert accuracy == pytest.approx(read_json(folder / "summary.json")["metrics"]["validation_accuracy"])


@pytest.mark.process
def test_scores_do_not_depend_on_the_batch_or_the_layout(run, pairs):
    items = pair_items(pairs[:6])
    tables = []
    for settings in (SETTINGS, ScoringSettings(256, 1, threads=1), ScoringSettings(256, layout="plain", threads=1)):
        tables.append([row.score for row in load_scorer(run / "model", settings).score(items)])
    np.testing.assert_allclose(tables[1], tables[0], atol=1e-5)
    np.testing.assert_allclose(tables[2], tables[0], atol=1e-5)


@pytest.mark.process
def test_the_command_scores_a_run(run, pairs, tmp_path):
    from click.testing import CliRunner

    from rm_methods.cli import main

    rows = [{"prompt": "Paint it red.", "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs[:3]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["score", "--model", run / "model", "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "s.csv"]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 7


@pytest.mark.process
def test_the_attention_of_the_policy_can_be_captured(run, tokenizer, pairs):
    model = load_implicit_reward_model(run / "model")
    assert model.layout("auto") == "packed"
    batch = lay_out(tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:2]), "packed", 0)
    before = model(batch).rewards
    model.capture_attention((0,))
    output = model(batch)
    assert set(output.attention) == {0}
    assert torch.equal(output.rewards, before)
