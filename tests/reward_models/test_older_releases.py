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
    assert tokenizer == {"tokenizer_class": "PreTrainedTokenizerFast"}


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


def test_a_trained_folder_reads_the_same_in_this_release(trained_run):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(trained_run)
    assert config.rope_parameters["rope_theta"] == json.loads((trained_run / "config.json").read_text())["rope_theta"]
    assert AutoTokenizer.from_pretrained(trained_run).is_fast
