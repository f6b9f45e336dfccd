"""What the report says about data, budget, methods and machine, from records with known counts."""

import copy
import json
from dataclasses import replace

import pytest

from rm_methods.experiment.layout import Layout
from rm_methods.html_report.protocol import protocol
from rm_methods.html_report.stored_results import newest_config, stored_results
from tests.comparison.test_folders import stored

METHODS = {"bradley_terry": "bradley_terry", "hinge": "hinge"}


@pytest.fixture
def results(tmp_path):
    """The results of an experiment of two methods with three seeds each."""
    folder = stored(tmp_path, "study", METHODS)
    return stored_results(newest_config(folder), folder)


def change_summaries(results, change):
    """Write what `change` makes of the number and the content of each run's summary."""
    for number, path in enumerate(sorted(results.folder.glob("runs/*/seed*/summary.json"))):
        content = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
        path.write_text(json.dumps(content | change(number, content)))


def test_counts_of_the_data_are_those_of_its_report(results):
    report = {
        "dataset": {"title": "Two sources", "license": "MIT", "hub_id": "org/pairs", "revision": "abc"},
        "read": {"rows": 1200, "dropped": {"no text": {"count": 3}, "twice": {"count": 4}}},
        "sources": [{"name": "first", "rows": 800, "used": 500, "share_reached": 0.25}],
        "splits": {"train": {"pairs": 1000, "groups": 900, "flipped": 12, "share_chosen_longer": 0.6}},
        "notes": ["A note."],
    }
    path = Layout(results.folder).pairs_report
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report))
    assert protocol(results).data == (
        ("Data set", "Two sources"),
        ("Hub", "org/pairs at abc"),
        ("License", "MIT"),
        ("Rows read", "1,200; refused 7"),
        ("Source first", "800 rows, 500 pairs used, 25% of the training pairs"),
        ("Pairs in train", "1,000 from 900 prompts, chosen is longer in 60%, 12 labels flipped"),
        ("Note", "A note."),
    )


def test_only_changed_settings_of_a_method_are_named(results):
    config = copy.deepcopy(dict(results.config))
    config["methods"]["hinge"] |= {"settings": {"margin": 2.5}, "learning_rate": 2e-5}
    settings = {method.variant: method.settings for method in protocol(replace(results, config=config)).methods}
    assert settings["hinge"] == ("margin = 2.5", "learning_rate = 2e-05")
    assert settings["bradley_terry"] == ()


@pytest.mark.parametrize(("seconds", "text"), [(60, "6.0 min"), (1500, "2.5 h")])
def test_the_training_time_is_that_of_all_six_runs(results, seconds, text):
    cost = {"device": "cpu", "wall_seconds": seconds}
    change_summaries(results, lambda _, content: {"cost": content["cost"] | cost})
    machine = dict(protocol(results).machine)
    assert machine["Training time of all runs"] == text
    assert machine["Devices"] == "cpu"


def test_packages_are_named_with_the_versions_that_are_recorded(results):
    versions = [{"torch": "2.0", "peft": None}, {"torch": "2.1"}, {"torch": None}, {}, {}, {}]
    commit = {"git_commit": "a" * 40, "git_dirty": False}
    change_summaries(results, lambda number, _: {"provenance": commit | {"versions": versions[number]}})
    described = protocol(results)
    assert dict(described.machine)["Packages"] == "torch 2.0, 2.1"
    assert described.commands[0] == f"git checkout {'a' * 40}"
