"""`rm-methods init`: what it writes passes `check` and `prepare`, says what was read, and overwrites nothing."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.config.conflicts import needed_splits
from rm_methods.config.resolve import load_config
from rm_methods.config.starter import BUDGETS, LEAST_PROMPTS, Backbone, measured_lengths
from rm_methods.preferences.prepare import prepared_pairs
from tests.conftest import made_up_pairs


def rows(count=60, **more):
    return [
        {"prompt": pair.prompt[0]["content"], "chosen": pair.chosen, "rejected": pair.rejected, **more}
        for pair in made_up_pairs(count)
    ]


@pytest.fixture
def init(tmp_path, monkeypatch):
    """Run `init` in an empty folder on rows: the outcome, and the written configuration, resolved as `check` does."""
    monkeypatch.chdir(tmp_path)

    def run(pairs, *arguments, data="pairs.jsonl", out="pairs.yaml", backbone="tiny"):
        if pairs is not None:
            (tmp_path / data).write_text("".join(json.dumps(row) + "\n" for row in pairs))
        given = [] if backbone is None else ["--backbone", backbone]
        result = CliRunner().invoke(main, ["init", "--data", data, *given, *arguments])
        if result.exit_code:
            return result, None
        checked = CliRunner().invoke(main, ["check", "--config", out])
        assert checked.exit_code == 0, checked.output
        return result, load_config([out], before_workflow=True)

    return run


def splits(config):
    _, report = prepared_pairs(config["data"], needed_splits(config))
    return {split: summary["pairs"] for split, summary in report["splits"].items()}


def test_the_configuration_runs_and_says_what_was_read(init):
    pairs = rows()
    pairs[3]["chosen"] = ""
    pairs[7]["chosen"] = " "
    pairs[9]["rejected"] = pairs[9]["chosen"]
    result, config = init(pairs)
    assert config["experiment"] == "pairs"
    assert config["seeds"] == [0, 1, 2]
    assert list(config["benchmarks"]) == ["heldout"]
    assert set(config["methods"]) == {
        "bradley_terry", "rrm", "product_of_experts", "longest", "fitted_length", "random",
    }  # fmt: skip
    sizes = splits(config)
    assert set(sizes) == {"train", "validation", "test"}
    assert sum(sizes.values()) == 57
    assert "60 rows   pairs.jsonl" in result.output
    assert "2 dropped: empty response" in result.output
    assert re.search(r"empty response\n    pairs.jsonl, row 4\n    pairs.jsonl, row 8\n", result.output)
    assert "1 dropped: chosen equals rejected\n            e.g. pairs.jsonl, row 10" in result.output
    assert re.search(r"The longer response is chosen in \d\d\.\d% of the training pairs", result.output)
    assert f"With {sizes['test']} test pairs, an accuracy is known to about ±{98 / sizes['test'] ** 0.5:.1f}" in (
        result.output
    )
    assert "snakemake --cores 2 --configfile pairs.yaml" in result.output


def test_lengths_in_the_configuration_hold_for_every_pair(init):
    from rm_methods.reward_models.backbones import load_tokenizer, prepare_backbone

    pairs = rows()
    pairs[5]["rejected"] = "It is a long answer about colors. " * 30
    result, config = init(pairs)
    prepared, _ = prepared_pairs(config["data"])
    folder = "backbone"
    prepare_backbone(config["backbone"], [pair for pair in prepared if pair.split == "train"], folder)
    tokenizer = load_tokenizer(folder, 10**6)
    items = tokenizer.encode((pair.prompt, [pair.chosen, pair.rejected]) for pair in prepared)
    longest = max(max(item.lengths) for item in items)
    assert longest <= config["backbone"]["max_length"] <= 2 * longest
    assert "longest" in result.output


def test_a_file_is_overwritten_only_with_force(init, tmp_path):
    (tmp_path / "pairs.yaml").write_text("mine")
    result, _ = init(rows())
    assert result.exit_code == 2
    assert "--out pairs.yaml: the file exists. Name another file, or overwrite it with --force." in result.output
    assert (tmp_path / "pairs.yaml").read_text() == "mine"
    _, config = init(None, "--force")
    assert config["experiment"] == "pairs"
    result, _ = init(None, "--out", "pairs.jsonl", "--force")
    assert "would be overwritten" in result.output


def test_the_written_file_names_the_experiment(init):
    _, config = init(rows(), "--out", "my study (2).yaml", out="my study (2).yaml")
    assert config["experiment"] == "my_study_2"


def test_a_test_file_is_the_test_split(init, tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()[:10]))
    result, config = init(rows(), "--test", "test.jsonl")
    assert (config["data"]["test"], config["data"]["test_fraction"]) == ("test.jsonl", 0.0)
    assert splits(config)["test"] == 10
    assert "10 rows   test.jsonl" in result.output
    assert "duplicates: exact 10" in result.output


def test_splits_of_the_data_stay(init, tmp_path):
    named = [*rows(40), *({**row, "split": "test"} for row in rows(60)[40:])]
    _, config = init(named)
    assert config["data"]["test_fraction"] == 0.0
    assert splits(config)["test"] == 20
    (tmp_path / "folder").mkdir()
    for split, part in (("train", rows(40)), ("validation", rows(50)[40:]), ("test", rows(60)[50:])):
        (tmp_path / "folder" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    _, config = init(None, data="folder", out="folder.yaml")
    assert splits(config) == {"train": 40, "validation": 10, "test": 10}


def test_options_of_the_reader_are_written(init):
    renamed = [{"question": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in rows()]
    names = {"prompt_field": "question", "chosen_field": "better", "rejected_field": "worse"}
    options = [word for key, value in names.items() for word in ("--option", f"{key}={value}")]
    result, _ = init(renamed)
    assert "row 1: field 'chosen' is missing." in result.output
    assert "Found: better, question, worse." in result.output
    assert "name it with data.options.chosen_field" in result.output
    _, config = init(renamed, *options)
    assert config["data"]["options"].items() >= names.items()
    result, _ = init(None, "--option", "chosen_field", "--force")
    assert "--option chosen_field: write NAME=VALUE" in result.output
    result, _ = init(None, "--option", "chosen_field=[", "--force")
    assert "field '[' is missing" in result.output
    result, _ = init(None, "--option", "chosen_feld=better", "--force")
    assert "Did you mean 'chosen_field'?" in result.output


def test_too_few_prompts_are_refused_with_their_number(init):
    result, _ = init([{"prompt": "a", "chosen": f"good {k}", "rejected": f"bad {k}"} for k in range(90)])
    assert result.exit_code == 2
    assert f"90 training pairs with 1 different prompts were read; at least {LEAST_PROMPTS} prompts" in result.output
    result, _ = init([{"prompt": "a", "chosen": "b", "rejected": "b"}])
    assert "0 training pairs" in result.output


# In all but the first, the first fractions leave the validation or the test split empty.
@pytest.mark.parametrize("seed", [0, 20, 21, 30, 34, 36])
def test_the_least_number_of_prompts_gives_every_split(init, seed):
    """A hash draws the splits: a fraction that leaves one empty is raised."""
    pairs = [
        {"prompt": f"prompt {seed}-{k}", "chosen": "a good answer", "rejected": "bad"} for k in range(LEAST_PROMPTS)
    ]
    _, config = init(pairs)
    assert min(splits(config).values()) >= 1
    assert splits(config)["train"] >= 5


def test_many_pairs_are_limited_to_what_a_cpu_trains(init, monkeypatch):
    from dataclasses import replace

    import rm_methods.config.starter as starter

    monkeypatch.setitem(starter.BUDGETS, "tiny", replace(BUDGETS["tiny"], tokens=8_000))
    result, config = init(rows(400))
    limit = config["data"]["max_pairs"]["train"]
    assert 100 <= limit < 200
    assert config["training"]["epochs"] == 1
    assert f"on {limit} of" in result.output


@pytest.mark.parametrize(
    "name", ["odd name.jsonl", "№1.jsonl", "...jsonl", "010.jsonl", "a'b\".jsonl", "a: b #c.jsonl"]
)
def test_any_file_name_gives_a_configuration(init, name, tmp_path):
    result, _ = init(rows(), "--out", "c.yaml", data=name, out="c.yaml")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["data"]["dataset"] == name


def test_a_name_of_a_card_is_read_as_the_folder(init, tmp_path):
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    _, config = init(None, data="world", out="world.yaml")
    assert config["data"]["dataset"] == "./world"


def test_several_files_become_a_mixture(init, tmp_path):
    """A source with a test split keeps it, and the other gives a share of its prompts."""
    split = [*rows(30), *({**row, "split": "test"} for row in rows(40)[30:])]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    others = [row | {"prompt": f"Again: {row['prompt']}"} for row in rows(50)]
    result, config = init([*others, rows(1)[0]], "--data", "votes.jsonl", out="pairs_and_votes.yaml")
    assert config["experiment"] == "pairs_and_votes"
    assert [source["dataset"] for source in config["data"]["sources"]] == ["pairs.jsonl", "votes.jsonl"]
    assert [source["weight"] for source in config["data"]["sources"]] == [None, None]
    assert 10 < splits(config)["test"] < 30
    assert sum(splits(config).values()) == 90
    assert "votes: 1 pairs are also in another source" in result.output
    assert "51 rows   pairs.jsonl" in result.output
    assert "With `weight: 2` in one source" in (tmp_path / "pairs_and_votes.yaml").read_text()


def test_files_of_one_name_are_told_apart_by_their_folders(init, tmp_path):
    for number, folder in enumerate(("helpful", "harmless")):
        (tmp_path / folder).mkdir()
        pairs = [row | {"prompt": f"{number} {row['prompt']}"} for row in rows(30)]
        for name in ("train.jsonl", "train.more.jsonl") if number else ("train.jsonl",):
            lines = [row | {"prompt": f"{name} {row['prompt']}"} for row in pairs]
            (tmp_path / folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    given = ("--data", "harmless/train.jsonl", "--data", "harmless/train.more.jsonl", "--option", "id_field=null")
    _, config = init(None, *given, "--out", "c.yaml", data="helpful/train.jsonl", out="c.yaml")
    names = [source["name"] for source in config["data"]["sources"]]
    assert names == ["helpful_train", "harmless_train", "train.more"]
    assert all(source["options"]["id_field"] is None for source in config["data"]["sources"])


def test_a_file_given_twice_is_refused(init, tmp_path):
    result, _ = init(rows(), "--data", "./pairs.jsonl")
    assert result.exit_code == 2
    assert "which data.sources.0 reads, too; a file belongs to one source" in result.output


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ("nowhere", "--backbone nowhere: neither a folder here"),
        ("package:no_such_package", "package 'no_such_package' is not installed"),
        ("empty", "empty"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_refused(init, tmp_path, backbone, says):
    (tmp_path / "empty").mkdir()
    result, _ = init(rows(), backbone=backbone)
    assert result.exit_code == 2
    assert says in result.output
    assert not (tmp_path / "pairs.yaml").exists()


def test_a_hub_id_that_cannot_be_reached_is_written_with_estimated_lengths(init, tmp_path):
    result, config = init(rows(), backbone="no-such-owner/no-such-model")
    assert config["backbone"]["source"] == "no-such-owner/no-such-model"
    assert "estimated from bytes, because the hub cannot be reached" in result.output
    assert "revision" in (tmp_path / "pairs.yaml").read_text()


def test_a_folder_of_a_model_limits_the_length(init, reward_model, tokenizer, tmp_path):
    folder = tmp_path / "model"
    reward_model.classifier.save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    pairs = rows()
    pairs[0]["chosen"] = "word " * 3000
    _, config = init(pairs, backbone="model")
    assert config["backbone"]["max_length"] == reward_model.classifier.config.max_position_embeddings


def test_the_estimate_without_a_tokenizer_is_longer_than_english_text():
    pairs = made_up_pairs(30)
    estimated = measured_lengths(pairs, Backbone("no-such-owner/no-such-model", None, "given", ()))
    counted = measured_lengths(pairs, Backbone("tiny", None, "tiny", ()))
    assert estimated.longest > 0.5 * counted.longest
    assert (estimated.limit, counted.limit) == (None, None)
    assert counted.median <= counted.common <= counted.longest


def judged_rows(count=60):
    return [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], f"Hm {number}."], "scores": [3, 1, 1]}
        for number, row in enumerate(rows(count))
    ]


def test_rows_that_are_not_pairs_are_recognized_and_their_options_are_written(init, tmp_path):
    result, config = init(judged_rows())
    assert {name: config["data"]["options"][name] for name in ("form", "pairing", "ties")} == {
        "form": "scored",
        "pairing": "all",
        "ties": "drop",
    }
    text = (tmp_path / "pairs.yaml").read_text()
    assert "    pairing: all  # makes 120 of 180 possible pairs; docs/datasets.md\n" in text
    assert "    ties: drop  # 60 ties; error refuses a file with ties\n" in text
    assert sum(splits(config).values()) == 120
    assert "Read (rows: scored)" in result.output
    assert "180 pairs possible among 180 responses to 60 prompts" in result.output
    assert "60 of them are ties: they make no pair" in result.output
    assert "and less well because pairs share prompts" in result.output


def test_options_given_for_rows_that_are_not_pairs_are_kept(init, tmp_path):
    result, config = init(judged_rows(), "--option", "pairing=best_and_worst")
    assert result.exit_code == 0, result.output
    assert config["data"]["options"]["pairing"] == "best_and_worst"
    assert "pairing: best_and_worst  # makes 60 of 180" in (tmp_path / "pairs.yaml").read_text()
    assert sum(splits(config).values()) == 60


def test_a_test_file_may_have_another_form(init, tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(8, split="test")))
    _, config = init(judged_rows()[20:], "--test", "test.jsonl")
    assert config["data"]["options"]["form"] is None
    assert "form:" not in (tmp_path / "pairs.yaml").read_text()
    assert splits(config)["test"] == 8
