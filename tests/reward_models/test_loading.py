"""Models are loaded whole or not at all."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.reward_models.backbones import load_classifier, load_language_model, prepare_backbone
from rm_methods.reward_models.joint_model import load_encoder
from rm_methods.reward_models.loading import check_tensors, learned_positions, pretrained_model
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.system.ranks import print_once

ROOT = Path(__file__).parents[2]
SETTINGS = ScoringSettings(max_length=256, threads=1)
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
OWN_SIZE = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "max_position_embeddings": 64},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 8},
    "deberta-v2": {"attention_head_size": 8},
    "electra": {"embedding_size": 32},
}
DECODERS = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "mistral", "gpt_neox", "phi", "olmo2")
ENCODERS = ("bert", "roberta", "deberta-v2", "modernbert", "electra", "distilbert")


def small_config(model_type: str, vocabulary: int = 300, **changes):
    return AutoConfig.for_model(
        model_type, **(SIZE | OWN_SIZE.get(model_type, {}) | {"vocab_size": vocabulary} | changes)
    )


@pytest.fixture
def folder(reward_model, tokenizer, tmp_path):
    """A reward model as it is exported."""
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def items(pairs):
    return [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:4]]


def rename(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def edit(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Add tensors; None removes one."""
    file = folder / "model.safetensors"
    edited = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in edited.items() if tensor is not None}, file, metadata={"format": "pt"})


def scores(folder: Path, items) -> list[float]:
    return [row.score for row in load_scorer(folder, SETTINGS).score(items)]


def own_scores(folder: Path, items) -> list[float]:
    """What transformers gives for each text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1).eval()
    found = []
    for item in items:
        for response in item.responses:
            messages = [*item.prompt, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                found.append(float(model(ids).logits[0, 0]))
    return found


def test_nothing_else_calls_from_pretrained():
    """Loads elsewhere would be unchecked."""
    files = [file for part in ("rm_methods", "examples", "performance") for file in (ROOT / part).rglob("*.py")]
    assert len(files) > 100
    # The second compares the project's scores with those of transformers alone.
    allowed = {ROOT / "rm_methods/reward_models/loading.py", ROOT / "performance/architectures.py"}
    calls = {
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and file not in allowed
    }
    assert calls == set()


def layer_is_missing(folder):
    removed = [name for name in load_file(folder / "model.safetensors") if ".layers.1." in name]
    edit(folder, **dict.fromkeys(removed))


def has_two_labels(folder):
    edit(folder, score__weight=torch.ones(2, load_file(folder / "model.safetensors")["score.weight"].shape[1]))


def has_adapters(folder):
    rename(folder, lambda name: "base_model.model." + name.replace("q_proj.weight", "q_proj.base_layer.weight"))
    edit(folder, **{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 2)})


def is_a_language_model(folder):
    rename(folder, lambda name: name.replace("score.weight", "lm_head.weight"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            is_a_language_model,
            r"1 tensor is missing: score\.weight; 1 tensor is unexpected: lm_head\.weight\. .*language model",
        ),
        (
            lambda f: rename(f, lambda n: n.replace("score.", "painted_head.")),
            r"unexpected: painted_head\.weight\. Its reward head",
        ),
        (lambda f: edit(f, v_head__summary__weight=torch.ones(1)), r"1 tensor is unexpected: v_head\.summary\.weight"),
        (layer_is_missing, r"9 tensors are missing: model\.layers\.1\.input_layernorm\.weight, .* and 6 more"),
        (has_two_labels, r"the head has 2 outputs: LABEL_0, LABEL_1\. Say which"),
        (has_adapters, "adapters that are not merged"),
        (lambda f: rename(f, lambda n: "painted." + n), r"unexpected: painted\.model\.embed_tokens\.weight"),
    ],
)
def test_a_reward_model_without_all_its_weights_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_scorer(folder, SETTINGS)


@pytest.mark.parametrize(
    "prefixed",
    [
        lambda name: "_orig_mod." + name,
        lambda name: "module._orig_mod." + name,
        lambda name: name.replace("model.", "model._orig_mod.", 1),
        lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
        lambda name: "base_model.model." + name,
        lambda name: "_orig_mod.base_model.model." + name,
        lambda name: "model." + name,
    ],
)
def test_names_of_a_wrapped_model_are_undone(folder, items, prefixed, tmp_path):
    expected = scores(folder, items)
    rename(folder, prefixed)
    assert scores(folder, items) == expected
    # Saved again, the weights have their own names.
    model, _ = pretrained_model(AutoModelForSequenceClassification, folder, num_labels=1)
    model.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(model.state_dict())


def test_undoing_a_prefix_is_said(folder, items, capsys):
    rename(folder, lambda name: "_orig_mod." + name)
    load_scorer(folder, SETTINGS)
    assert "_orig_mod.model.embed_tokens.weight" in capsys.readouterr().err


def test_a_prefix_does_not_hide_a_missing_tensor(folder):
    edit(folder, **{"model.norm.weight": None})
    rename(folder, lambda name: "_orig_mod." + name)
    with pytest.raises(UserError, match="the weights are not those of LlamaForSequenceClassification"):
        load_scorer(folder, SETTINGS)


def test_a_backbone_with_a_prefix_is_trained_from_its_weights(prepared, reward_model, tokenizer, tmp_path):
    causal = AutoModelForCausalLM.from_config(reward_model.config)
    causal.save_pretrained(tmp_path / "base")
    tokenizer.tokenizer.save_pretrained(tmp_path / "base")
    rename(tmp_path / "base", lambda name: "_orig_mod." + name)
    backbone = prepared[2]["backbone"] | {"source": str(tmp_path / "base")}
    prepare_backbone(backbone, [], tmp_path / "prepared")
    loaded = load_classifier(tmp_path / "prepared", backbone, seed=0)
    for name, tensor in causal.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert torch.equal(load_language_model(tmp_path / "prepared", backbone, 0).lm_head.weight, causal.lm_head.weight)


@pytest.mark.parametrize("damage", [layer_is_missing, lambda f: edit(f, value_head__weight=torch.ones(1))])
def test_a_backbone_may_lack_its_head_only(prepared, reward_model, tokenizer, tmp_path, damage):
    """Said when the backbone is prepared, before any training job."""
    AutoModelForCausalLM.from_config(reward_model.config).save_pretrained(tmp_path / "base")
    tokenizer.tokenizer.save_pretrained(tmp_path / "base")
    damage(tmp_path / "base")
    backbone = prepared[2]["backbone"] | {"source": str(tmp_path / "base")}
    with pytest.raises(UserError, match=r"backbone\.source = '.*': the weights are not those of Llama"):
        prepare_backbone(backbone, [], tmp_path / "prepared")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", DECODERS)
def test_decoders_are_loaded_whole(model_type, tied, tmp_path):
    config = small_config(model_type, tie_word_embeddings=tied, num_labels=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "causal")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rewards")
    assert pretrained_model(AutoModelForCausalLM, tmp_path / "causal")[1] is False
    options = {"num_labels": 1}
    assert (
        pretrained_model(AutoModelForSequenceClassification, tmp_path / "causal", new_head=True, **options)[1] is True
    )
    assert pretrained_model(AutoModelForSequenceClassification, tmp_path / "rewards", **options)[1] is False
    with pytest.raises(UserError, match="score"):
        check_tensors(AutoModelForSequenceClassification, tmp_path / "causal", **options)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_encoders_are_loaded_whole(model_type, tmp_path):
    config = small_config(model_type, num_labels=1)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "masked")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "trained")
    load_encoder(tmp_path / "masked", new_head=True)
    load_encoder(tmp_path / "trained")
    assert pretrained_model(AutoModelForMaskedLM, tmp_path / "masked")[1] is False
    with pytest.raises(UserError, match="missing"):
        load_encoder(tmp_path / "masked")


def test_auto_attention_falls_back_to_eager_and_says_so(tokenizer, items, tmp_path, capsys):
    torch.manual_seed(0)
    config = small_config("gemma2", len(tokenizer.tokenizer), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.tokenizer.save_pretrained(tmp_path)
    assert scores(tmp_path, items) == pytest.approx(own_scores(tmp_path, items), abs=1e-4)
    assert "has no sdpa attention, so eager attention is used" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"does not support the attention implementation .* Set attention to 'auto'"):
        load_scorer(tmp_path, ScoringSettings(attention="sdpa"))


def test_a_model_without_pad_token_scores_plain_batches(tokenizer, items, tmp_path):
    torch.manual_seed(0)
    config = small_config("mistral", len(tokenizer.tokenizer), num_labels=1, pad_token_id=None)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    scorer = load_scorer(tmp_path, SETTINGS)
    assert (scorer.tokenizer.pad_id, scorer.model.layout("auto")) == (None, "plain")
    found = [row.score for row in scorer.score(items)]
    assert found == pytest.approx(own_scores(tmp_path, items), abs=1e-4)


def test_texts_beyond_learned_positions_are_cut_and_marked(tokenizer, pairs, tmp_path, capsys):
    config = small_config("gpt2", len(tokenizer.tokenizer), num_labels=1)
    assert learned_positions(config) == 64
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.tokenizer.save_pretrained(tmp_path)
    item = BenchmarkItem("a", "s", [{"role": "user", "content": "red " * 300}], ["blue", "green " * 300], 0)
    rows = load_scorer(tmp_path, SETTINGS).score([item])
    assert all(row.truncated and row.n_tokens <= 64 for row in rows)
    assert "texts are cut at 64 tokens, not 256" in capsys.readouterr().err


def test_rotary_models_have_no_learned_positions():
    assert learned_positions(small_config("llama")) is None


def test_a_token_without_embedding_is_named_where_a_text_has_it(folder, items):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    assert len(scores(folder, items)) == 2 * len(items)
    item = BenchmarkItem("a", "s", [{"role": "user", "content": "a"}], ["b <|extra|>"], 0)
    with pytest.raises(UserError, match=r"token '<\|extra\|>' \(id \d+\), but the model has embeddings for \d+ tokens"):
        scores(folder, [item])


def test_a_load_shows_one_progress_bar(folder, capsys):
    pretrained_model(AutoModelForSequenceClassification, folder, num_labels=1)
    assert capsys.readouterr().err.count("Loading weights: 100%") == 1


def test_notices_are_printed_on_the_first_rank_alone(tokenizer, tmp_path, monkeypatch, capsys):
    for rank, count in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        print_once("layout plain")
        assert capsys.readouterr().err.count("layout plain") == count
