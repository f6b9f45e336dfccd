"""The section `data`: one data set, or several sources."""

from __future__ import annotations

import json

import pytest

from rm_methods.config.resolve import load_config, resolve
from rm_methods.errors import ConfigError
from rm_methods.experiment.experiment import Experiment

DEFAULTS = {"root": None, "name": None, "weight": None}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files of pairs in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "x/train.jsonl", "y/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": name, "chosen": "b", "rejected": "c"}) + "\n")
    return tmp_path


def configured(data, **sections):
    return {"experiment": "x", "data": data, "methods": {"longest": {}}} | sections


def sources(data):
    return resolve(configured(data))["data"]["sources"]


def problems(data, **sections):
    with pytest.raises(ConfigError) as error:
        resolve(configured(data, **sections), before_workflow=True)
    return error.value.problems


def test_a_list_is_short_for_sources_which_get_names_and_weights(files):
    entries = [{"dataset": "a.jsonl", "weight": 2}, {"dataset": "b.jsonl"}]
    listed = resolve(configured(entries))
    assert listed == resolve(configured({"sources": entries}))
    assert resolve(listed) == listed
    first, second = listed["data"]["sources"]
    assert (first["name"], first["weight"]) == ("a", 2)
    assert (second["name"], second["weight"]) == ("b", 1)
    assert second["options"]["chosen_field"] == "chosen"
    assert "dataset" not in listed["data"]
    assert [source["weight"] for source in sources([{"dataset": "a.jsonl"}, {"dataset": "b.jsonl"}])] == [None, None]


def test_a_file_with_any_name_has_a_name_that_may_be_written(files):
    for name in ("my pairs (2).jsonl", "№.jsonl"):
        (files / name).write_text((files / "a.jsonl").read_text())
    named = sources([{"dataset": "my pairs (2).jsonl"}, {"dataset": "№.jsonl"}])
    assert [source["name"] for source in named] == ["my_pairs_2", "pairs"]


def test_a_single_data_set_resolves_as_before(files):
    data = resolve(configured({"dataset": "a.jsonl"}))["data"]
    assert set(data) == {
        "dataset", "root", "test", "options", "seed", "validation_fraction", "test_fraction", "max_pairs",
        "max_characters", "length_balance", "length_balanced_splits", "label_noise",
    }  # fmt: skip


def test_later_files_replace_the_list_and_keep_other_settings(files):
    (files / "base.yaml").write_text("experiment: x\nmethods: {longest: {}}\ndata: [{dataset: a.jsonl}]\n")
    (files / "over.yaml").write_text("data: {seed: 3}\n")
    data = load_config(["base.yaml", "over.yaml"])["data"]
    assert (data["seed"], [source["dataset"] for source in data["sources"]]) == (3, ["a.jsonl"])
    (files / "single.yaml").write_text("data: {dataset: b.jsonl}\n")
    with pytest.raises(ConfigError, match="keep one of them"):
        load_config(["base.yaml", "single.yaml"])
    (files / "single.yaml").write_text("data: {dataset: b.jsonl, sources!: null}\n")
    assert load_config(["base.yaml", "single.yaml"])["data"]["dataset"] == "b.jsonl"


def test_every_problem_of_every_source_comes_at_once_with_its_key_path(files):
    (files / "t.txt").write_text("")
    found = problems(
        [
            {"dataset": "a.jsonl", "weight": 0},
            {"dataset": "hh_rlf"},
            {"dataset": "./a.jsonl", "weight": -1},
            {"dataset": "nowhere.jsonl", "weight": "2"},
            {"dataset": "t.txt"},
            {"dataset": "b.jsonl", "options": {"chosen_feld": "x", "annotators": []}},
            {"dataset": "hh_rlhf", "root": "/nope"},
            {"dataset": "shards/*.jsonl", "wieght": 3},
            {"dataset": "*.jsonl", "name": "a/b"},
            {"weight": 1},
            3,
        ]
    )
    for number, expected in enumerate(
        (
            "data.sources.0.weight: is 0; must be more than 0.",
            "data.sources.2.weight: is -1; must be more than 0.",
            'data.sources.3.weight: is "2"; expected a number or null, without quotation marks.',
            "data.sources.7.wieght: unknown key. Did you mean 'weight'?",
            'data.sources.8.name: is "a/b"; expected a name of ASCII letters',
            "data.sources.9: missing dataset.",
            "data.sources.10: is 3; expected a source, such as {dataset: pairs.jsonl, weight: 2}.",
            "data.sources.1.dataset: no card is called 'hh_rlf'. Give the path of a file or folder of pairs, or the "
            "name of a card. Did you mean 'hh_rlhf'?",
            "data.sources.2.dataset: './a.jsonl' reads ",
            "data.sources.3.dataset: no file or folder nowhere.jsonl exists.",
            "data.sources.4.dataset: t.txt: unknown format.",
            "data.sources.5.options.chosen_feld: unknown key. Did you mean 'chosen_field'?",
            "data.sources.5.options.annotators: unknown key.",
            "data.sources.6.root: no such folder: '/nope'",
            "data.sources.7.dataset: no file matches 'shards/*.jsonl'",
            "data.sources.8.dataset: '*.jsonl' reads ",
        )
    ):
        assert any(problem.startswith(expected) for problem in found), (number, expected, found)
    assert len(found) == 16


def test_settings_of_a_single_data_set_beside_sources_are_refused(files):
    found = problems(
        {"dataset": "a.jsonl", "root": ".", "options": {"id_field": None}, "sources": [{"dataset": "b.jsonl"}]}
    )
    assert [problem.partition(":")[0] for problem in found] == ["data.dataset", "data.root", "data.options"]
    assert problems({"seed": 1}) == ["data: missing dataset. Name one data set, or write sources: a list of several."]
    assert problems([]) == ["data.sources: is []; must not be empty."]
    assert "a mapping with `dataset` or `sources`, or a list of sources" in problems("a.jsonl")[0]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (["a.jsonl", "a.jsonl"], "data.sources.1.dataset: 'a.jsonl' reads "),
        (["x/train.jsonl", "x"], "data.sources.1.dataset: 'x' reads "),
        (["[ab].jsonl", "b.jsonl"], "data.sources.1.dataset: 'b.jsonl' reads "),
        (["world", "world"], "data.sources.1.dataset: 'world' with these options is data.sources.0, too"),
        (["x/train.jsonl", "y/train.jsonl"], "data.sources.1.name: 'train' is the name of data.sources.0, too"),
    ],
)
def test_data_given_twice_is_refused(files, entries, problem):
    (found,) = problems([{"dataset": entry} for entry in entries])
    assert found.startswith(problem)


def test_one_card_with_other_options_is_another_source(files):
    entries = [
        {"dataset": "hh_rlhf", "options": {"subsets": [name]}, "name": name}
        for name in ("helpful-base", "harmless-base")
    ]
    assert [source["name"] for source in sources(entries)] == ["helpful-base", "harmless-base"]


def test_the_test_file_is_none_of_the_sources(files):
    (found,) = problems({"sources": [{"dataset": "a.jsonl"}, {"dataset": "[b].jsonl"}], "test": "b.jsonl"})
    assert found.startswith("data.test: 'b.jsonl' is the file of data.sources.1.dataset")
    (found,) = problems({"sources": [{"dataset": "a.jsonl"}, {"dataset": "hh_rlhf"}], "test": "b.jsonl"})
    assert found.startswith("data.test: the data set 'hh_rlhf' has a test split")


def test_heldout_needs_a_test_split_in_one_of_the_sources(files):
    entries = [{"dataset": "a.jsonl"}, {"dataset": "b.jsonl"}]
    heldout = {"benchmarks": {"heldout": {}}}
    (found,) = problems(entries, **heldout)
    assert found.startswith("benchmarks.heldout: is made of the split test, but no source of data.sources has it.")
    with (files / "b.jsonl").open("a") as stream:
        stream.write(json.dumps({"prompt": "z", "chosen": "b", "rejected": "c", "split": "test"}))
    resolve(configured(entries, **heldout), before_workflow=True)


def test_methods_of_the_controlled_world_need_it_alone(files):
    (found,) = problems([{"dataset": "world"}, {"dataset": "a.jsonl"}], methods={"gold": {}})
    assert found.startswith("methods.gold: 'gold' needs the controlled world, but data.dataset is 'world + a'")
    config = configured([{"dataset": "world"}], methods={"gold": {}}, benchmarks={"world": {}})
    alone = resolve(config)
    assert alone["benchmarks"]["world"] == resolve(config | {"data": {"dataset": "world"}})["benchmarks"]["world"]


def test_paths_of_sources_are_expanded(files, monkeypatch):
    monkeypatch.setenv("PAIRS", str(files))
    assert sources([{"dataset": "$PAIRS/a.jsonl"}])[0]["dataset"] == f"{files}/a.jsonl"


def test_the_experiment_depends_on_all_files_weights_and_cards(files):
    entries = [{"dataset": "a.jsonl", "weight": 2}, {"dataset": "[b].jsonl"}, {"dataset": "x"}, {"dataset": "world"}]

    def experiment(data):
        return Experiment(resolve(configured(data)))

    mixture = experiment(entries)
    assert mixture.data_sources() == ["a.jsonl", "b.jsonl", "x/train.jsonl"]
    assert experiment({"sources": entries, "test": "y/train.jsonl"}).data_sources()[-1] == "y/train.jsonl"
    settings = mixture.data_settings()
    assert [card is None for card in settings["cards"]] == [True, True, True, False]
    heavier = [entries[0] | {"weight": 3}, *entries[1:]]
    assert experiment(heavier).asked("prepare")["settings"] != mixture.asked("prepare")["settings"]
    assert experiment(entries[:3]).code("prepare") != mixture.code("prepare")  # without the world's reader
    assert experiment({"dataset": "a.jsonl"}).data_settings().keys() == {"data", "card"}
