import copy
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.reward_models.backbones import load_classifier, load_language_model, load_tokenizer, prepare_backbone
from rm_methods.reward_models.tokenization import ChatTokenizer


def section(prepared, **changes):
    return prepared[2]["backbone"] | changes


def test_a_tiny_backbone_is_whole_and_its_weights_depend_on_the_seed(prepared):
    record = read_json(prepared[1] / "backbone.json")
    assert record["kind"] == "tiny"
    first, again, other = (load_classifier(prepared[1], section(prepared), seed) for seed in (0, 0, 1))
    assert torch.equal(first.model.embed_tokens.weight, again.model.embed_tokens.weight)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)


def test_preparing_twice_gives_the_same_tokenizer(prepared, pairs, tmp_path):
    record = prepare_backbone(section(prepared), pairs, tmp_path / "again")
    assert record["tokenizer_hash"] == read_json(prepared[1] / "backbone.json")["tokenizer_hash"]


def test_a_local_folder_keeps_its_weights_and_gets_a_head_from_the_seed(prepared, reward_model, tokenizer, tmp_path):
    from transformers import LlamaForCausalLM

    causal = LlamaForCausalLM(reward_model.config)
    causal.save_pretrained(tmp_path / "base")
    tokenizer.tokenizer.save_pretrained(tmp_path / "base")
    backbone = section(prepared, source=str(tmp_path / "base"))
    record = prepare_backbone(backbone, [], tmp_path / "prepared")
    assert record["weights"] == str(tmp_path / "base")
    zero, one, again = (load_classifier(tmp_path / "prepared", backbone, seed) for seed in (0, 1, 0))
    assert torch.equal(zero.model.embed_tokens.weight, causal.model.embed_tokens.weight)
    assert torch.equal(zero.model.layers[0].mlp.up_proj.weight, one.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(zero.score.weight, one.score.weight)
    assert torch.equal(zero.score.weight, again.score.weight)


def test_a_head_that_is_already_trained_is_kept(prepared, reward_model, tokenizer, tmp_path):
    reward_model.save(tmp_path / "trained")
    tokenizer.tokenizer.save_pretrained(tmp_path / "trained")
    backbone = section(prepared, source=str(tmp_path / "trained"))
    prepare_backbone(backbone, [], tmp_path / "prepared")
    loaded = load_classifier(tmp_path / "prepared", backbone, seed=7)
    assert torch.equal(loaded.score.weight, reward_model.classifier.score.weight)


def test_a_pad_token_that_ends_conversations_is_replaced(prepared, tokenizer, reward_model, tmp_path):
    """pad == eos and the template ends in eos: other servers would read the reward one token early."""
    unsafe = copy.deepcopy(tokenizer.tokenizer)
    unsafe.pad_token = unsafe.eos_token
    reward_model.save(tmp_path / "base")
    unsafe.save_pretrained(tmp_path / "base")
    backbone = section(prepared, source=str(tmp_path / "base"))
    prepare_backbone(backbone, [], tmp_path / "prepared")
    safe = AutoTokenizer.from_pretrained(tmp_path / "prepared")
    ids = ChatTokenizer(safe, 64).encode([([{"role": "user", "content": "a"}], ["b"])])[0].sequences[0]
    assert ids[-1] == safe.eos_token_id != safe.pad_token_id
    classifier = load_classifier(tmp_path / "prepared", backbone, 0)
    assert classifier.config.pad_token_id == safe.pad_token_id < classifier.get_input_embeddings().num_embeddings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": "nobody/no-such-model"}, "set backbone.source to the local folder"),
        ({"source": "package:no_such_package", "gguf_file": "x.gguf"}, "package 'no_such_package' is not installed"),
        ({"source": "package:../up", "gguf_file": "x.gguf"}, "is not installed"),
        ({"source": "tiny"}, "none were given"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_what_to_do(prepared, tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        prepare_backbone(section(prepared, **changes), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_limit_beyond_the_models_positions_is_refused(prepared, tokenizer, reward_model, tmp_path):
    reward_model.save(tmp_path / "base")
    tokenizer.tokenizer.save_pretrained(tmp_path / "base")
    positions = reward_model.config.max_position_embeddings
    with pytest.raises(UserError, match=f"more than the {positions} positions"):
        prepare_backbone(
            section(prepared, source=str(tmp_path / "base"), max_length=positions + 1), [], tmp_path / "out"
        )


def test_a_missing_gguf_file_names_those_that_are_there(prepared, tmp_path):
    (tmp_path / "other.gguf").touch()
    with pytest.raises(UserError, match=r"GGUF files in this folder: other\.gguf"):
        prepare_backbone(section(prepared, source=str(tmp_path), gguf_file="x.gguf"), [], tmp_path / "out")


def test_a_tokenizer_without_a_template_needs_one_named(prepared, tokenizer, reward_model, tmp_path):
    bare = copy.deepcopy(tokenizer.tokenizer)
    bare.chat_template = None
    reward_model.save(tmp_path / "base")
    bare.save_pretrained(tmp_path / "base")
    backbone = section(prepared, source=str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"backbone\.chat_template"):
        prepare_backbone(backbone, [], tmp_path / "out")
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    prepare_backbone(backbone | {"chat_template": str(tmp_path / "t.jinja")}, [], tmp_path / "out")
    assert "m.role" in AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    (tmp_path / "t.jinja").write_bytes("{{ é }}".encode("latin-1"))
    with pytest.raises(UserError, match=r"backbone\.chat_template = .*t\.jinja' cannot be read .*utf-8"):
        prepare_backbone(backbone | {"chat_template": str(tmp_path / "t.jinja")}, [], tmp_path / "out")


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
def test_a_backbone_that_was_not_prepared_is_named(prepared, tmp_path, load):
    with pytest.raises(
        UserError, match=r"not a prepared backbone \(backbone\.json is missing\)\. Prepare the backbone"
    ):
        load(tmp_path / "backbone", section(prepared), 0)
    with pytest.raises(UserError, match=r"no such folder\. Prepare the backbone first"):
        load_tokenizer(tmp_path / "backbone", 256)


def test_a_tokenizer_that_was_changed_after_the_preparation_is_refused(prepared, tmp_path):
    folder = tmp_path / "backbone"
    shutil.copytree(prepared[1], folder)
    load_tokenizer(folder, 64)
    settings = read_json(folder / "tokenizer_config.json")
    settings["chat_template"] = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="the tokenizer is not the one that was prepared"):
        load_tokenizer(folder, 64)
