"""Contamination below the comparison table: one experiment, noise levels, several folders, and what was not counted."""

from __future__ import annotations

import csv

import pytest

from rm_methods.benchmarks.contamination import count_contamination, write_contamination
from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.comparison.compare import compare
from rm_methods.comparison.contamination import (
    BenchmarkContamination,
    contamination_csv,
    contamination_notes,
    contamination_of,
    merged_contamination,
)
from rm_methods.comparison.folders import compare_folders
from rm_methods.comparison.noise import compare_across_noise
from rm_methods.comparison.result import Column
from rm_methods.config.variants import NoiseLevel
from rm_methods.errors import DataError
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.preferences.pair import make_pair, write_pairs
from tests.comparison.test_folders import stored
from tests.conftest import experiment_config

OVERALL = Column("rm_bench", "overall", "RM-Bench", 0.5)


def user(text):
    return [{"role": "user", "content": text}]


ITEMS = [BenchmarkItem("chat/1", "chat", user("What is a plum?"), ["A fruit.", "Mud."], 0)]
LEAKED = [make_pair(user("What is a plum?"), "A fruit.", "Mud.", split="train", source="made up")]
CLEAN = [make_pair(user("What is a pear?"), "A fruit.", "Mud.", split="train", source="made up")]


def entry(pairs, **more):
    return BenchmarkContamination("rm_bench", count_contamination("rm_bench", ITEMS, pairs), **more)


def write_files(folder, pairs):
    layout = Layout(folder)
    layout.pairs.parent.mkdir(parents=True, exist_ok=True)
    layout.items("rm_bench").parent.mkdir(exist_ok=True)
    write_pairs(pairs, layout.pairs)
    write_items(ITEMS, layout.items("rm_bench"))
    write_contamination("rm_bench", layout.items("rm_bench"), layout.pairs, layout.contamination("rm_bench"))


def test_every_table_says_it_and_the_csv_has_the_numbers(experiment, tmp_path):
    runs = experiment().add("bradley_terry", 0.0)
    compare(runs, [OVERALL], None, tmp_path / "out", contamination=[entry(LEAKED)])
    for suffix in ("txt", "md", "tex"):
        text = " ".join((tmp_path / "out" / f"table.{suffix}").read_text().replace("\\_", "_").split())
        assert "rm_bench, overlap with 1 training pairs: 1 of 1 prompts occur in them (1 with a response)" in text
    table = (tmp_path / "out" / "table.txt").read_text()
    assert max(map(len, table.splitlines())) <= 80
    rows = list(csv.DictReader((tmp_path / "out" / "contamination.csv").open()))
    assert [(row["benchmark"], row["subset"], row["prompt"], row["prompt_share"]) for row in rows] == [
        ("rm_bench", "", "1", "1.0"),
        ("rm_bench", "chat", "1", "1.0"),
    ]


def test_a_table_of_noise_levels_says_it_once(experiment, tmp_path):
    world = experiment()
    runs = world.add("a", 0.0) + world.add("a_noise20", 0.0, method="a")
    levels = [NoiseLevel(0.0, "uniform", {"a": "a"}), NoiseLevel(0.2, "uniform", {"a_noise20": "a"})]
    result = compare_across_noise(runs, [OVERALL], None, levels, tmp_path / "out", contamination=[entry(LEAKED)])
    assert " ".join(result.text.split()).count("overlap with 1 training pairs") == 1
    for folder in (tmp_path / "out", *(tmp_path / "out" / level.folder for level in levels)):
        assert len(list(csv.DictReader((folder / "contamination.csv").open()))) == 2


def test_what_was_not_counted_is_said():
    notes = contamination_notes(
        [
            BenchmarkContamination("world", None, by_design=True),
            BenchmarkContamination("judge_bench", None),
            entry(CLEAN),
        ]
    )
    assert notes[0].startswith("rm_bench, overlap with 1 training pairs: none.")
    assert notes[1].startswith("world: overlap with the training pairs is not counted, because one generator")
    assert notes[2].startswith("judge_bench: overlap with the training pairs was not counted")
    assert contamination_csv([BenchmarkContamination("world", None, by_design=True)]).count("\n") == 1


def test_generated_benchmarks_overlap_by_design_and_held_out_pairs_of_a_file_do_not(tmp_path):
    benchmarks = {"heldout": {}, "rm_bench": {}}
    generated = Experiment(experiment_config(tmp_path, benchmarks=benchmarks, data={"dataset": "world"}))
    assert generated.compared_with_training() == ["rm_bench"]
    data = {"dataset": "hh_rlhf", "test_fraction": 0.1}
    published = Experiment(experiment_config(tmp_path, benchmarks=benchmarks, data=data))
    assert published.compared_with_training() == ["heldout", "rm_bench"]


def test_stored_counts_belong_to_the_files_beside_them(tmp_path):
    experiment = Experiment(experiment_config(tmp_path, benchmarks={"rm_bench": {}}))
    assert contamination_of(experiment, tmp_path) == [BenchmarkContamination("rm_bench", None)]
    write_files(tmp_path, LEAKED)
    assert contamination_of(experiment, tmp_path)[0].report["counts"]["prompt"] == 1
    write_pairs(CLEAN, Layout(tmp_path).pairs)
    with pytest.raises(DataError, match=r"pairs.parquet was changed since"):
        contamination_of(experiment, tmp_path)
    Layout(tmp_path).pairs.unlink()
    assert contamination_of(experiment, tmp_path)[0].report["counts"]["prompt"] == 1


def test_folders_that_agree_share_a_note_and_others_name_theirs():
    first, second = entry(LEAKED), entry(CLEAN)
    assert merged_contamination(["x", "y"], [[first], [first]], ["rm_bench"]) == [first]
    differing = merged_contamination(["x", "y"], [[first], [second]], ["rm_bench"])
    assert [one.experiment for one in differing] == ["x", "y"]
    notes = contamination_notes(differing)
    assert notes[0].startswith("x: rm_bench, overlap")
    assert notes[1].startswith("y: rm_bench, overlap")
    assert [row["experiment"] for row in csv.DictReader(contamination_csv(differing).splitlines())][::2] == ["x", "y"]
    missing = [BenchmarkContamination("rm_bench", None)]
    assert "y/rm_bench: overlap" in contamination_notes(merged_contamination("xy", [[first], missing], ["rm_bench"]))[1]


def test_a_table_of_folders_says_it(tmp_path):
    methods = {"bradley_terry": "bradley_terry", "longest": "longest"}
    folders = [stored(tmp_path, name, methods, keys={"bradley_terry": name}) for name in ("one", "two")]
    write_files(folders[0], LEAKED)
    notes = compare_folders(folders, tmp_path / "out").comparison.notes
    assert any(note.startswith("one: rm_bench, overlap with 1 training pairs: 1 of 1") for note in notes)
    assert any(note.startswith("two/rm_bench: overlap with the training pairs was not counted") for note in notes)
