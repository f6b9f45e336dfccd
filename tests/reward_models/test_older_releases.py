import json

from rm_methods.reward_models.older_releases import add_older_names


def written(folder, config, tokenizer_class="TokenizersBackend"):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    add_older_names(folder)
    return json.loads((folder / "config.json").read_text()), json.loads((folder / "tokenizer_config.json").read_text())


def test_older_names_stand_beside_the_new_ones(tmp_path):
    rope = {"rope_theta": 500000.0, "rope_type": "default"}
    config, tokenizer = written(tmp_path, {"rope_parameters": rope})
    assert config == {"rope_parameters": rope, "rope_theta": 500000.0}
    assert tokenizer == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }


def test_scaled_positions_are_named_too(tmp_path):
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0}
    config, _ = written(tmp_path, {"rope_parameters": rope})
    assert config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}


def test_what_has_no_older_name_is_left_alone(tmp_path):
    by_layer = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}
    config, tokenizer = written(tmp_path, by_layer, "BertTokenizer")
    assert config == by_layer
    assert tokenizer == {"tokenizer_class": "BertTokenizer"}
    add_older_names(tmp_path / "nothing")


def test_a_saved_model_reads_the_same_in_this_release(reward_model, tokenizer, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    reward_model.classifier.config.rope_parameters = {"rope_theta": 500.0, "rope_type": "default"}
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    add_older_names(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["rope_theta"] == 500.0
    assert AutoConfig.from_pretrained(tmp_path / "model").rope_parameters["rope_theta"] == 500.0
    read = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert read("a b")["input_ids"] == tokenizer.tokenizer("a b")["input_ids"]
    assert set(read("a b")) == {"input_ids", "attention_mask"}
