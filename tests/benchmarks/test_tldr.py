from __future__ import annotations

import pytest

from rm_methods.benchmarks.cards import load_benchmark_card, resolve_benchmark_options
from rm_methods.benchmarks.evaluation import credit_table, metric_values
from rm_methods.errors import ConfigError, DataError

from .conftest import EXAMPLES
from .made_up import graded_items, metrics_of_graded, prepared, scores_by, write_lines

CARD = load_benchmark_card("tldr")
INFO = {"id": "t3_x", "subreddit": "AskReddit", "title": "A question", "post": "Why?\n\nReally."}
ROW = {
    "info": INFO,
    "summaries": [{"text": " why?", "policy": "ref", "note": None}, {"text": " no", "policy": "sup1", "note": None}],
    "choice": 0,
    "worker": "w",
    "batch": "batch11",
    "split": "valid2",
    "extra": {"confidence": 8},
}
NEWS = ROW | {"info": {"id": "x", "article": "It rained.", "site": "cnn", "title": "Rain"}}


def read(tmp_path, *rows, **options):
    write_lines(tmp_path / "root/comparisons/batch11.json", *rows)
    return prepared("tldr", tmp_path / "root", tmp_path, **options)


class TestItems:
    def test_the_prompt_is_that_of_the_official_code_and_the_summaries_keep_their_space(self, tmp_path):
        _, (item,) = read(tmp_path, ROW)
        text = "SUBREDDIT: r/AskReddit\n\nTITLE: A question\n\nPOST: Why?\n\nReally.\n\nTL;DR:"
        assert item.prompt == [{"role": "user", "content": text}]
        assert item.responses == [" why?", " no"]
        assert (item.subset, item.label, item.meta) == (
            "valid2",
            0,
            {"batch": "batch11", "policies": ["ref", "sup1"]},
        )

    def test_braces_in_a_post_are_text(self, tmp_path):
        _, (item,) = read(tmp_path, ROW | {"info": INFO | {"post": "print({title})"}})
        assert "POST: print({title})" in item.prompt[0]["content"]

    def test_the_choice_is_the_index_of_the_better_summary(self, tmp_path):
        report, items = read(tmp_path, ROW, ROW | {"choice": 1})
        assert [item.label for item in items] == [0, 1]
        assert report["counted"] == {}
        assert items[0].group == items[1].group
        assert items[0].item_id != items[1].item_id

    def test_a_judgment_that_occurs_twice_stays_two_items(self, tmp_path):
        report, items = read(tmp_path, ROW, ROW | {"worker": "another"})
        assert items[1].item_id == items[0].item_id + "#2"
        assert report["counted"]["id occurs more than once, kept under another"]["count"] == 1

    def test_the_hub_writes_missing_fields_as_null(self, tmp_path):
        reddit = ROW | {"info": INFO | {"site": None, "article": None}}
        news = ROW | {"info": NEWS["info"] | {"post": None, "subreddit": None}}
        report, items = read(tmp_path, reddit, news)
        assert len(items) == 1
        assert report["excluded"]["news article (CNN/DM), not a Reddit post"]["count"] == 1


class TestSplits:
    def test_valid2_by_default_and_the_others_are_counted(self, tmp_path):
        report, items = prepared("tldr", EXAMPLES / "tldr", tmp_path)
        assert report["subsets"] == {"valid2": 3}
        assert {reason: entry["count"] for reason, entry in report["excluded"].items()} == {
            "split valid1, not asked for by options.splits": 1,
            "split train, not asked for by options.splits": 1,
            "news article (CNN/DM), not a Reddit post": 1,
        }
        assert report["n_rows"] == len(items) + 3

    def test_valid1_can_be_asked_for(self, tmp_path):
        report, _ = prepared("tldr", EXAMPLES / "tldr", tmp_path, splits=["valid1"])
        assert report["subsets"] == {"valid1": 1}
        report, _ = prepared("tldr", EXAMPLES / "tldr", tmp_path, splits=["valid1", "valid2"])
        assert report["subsets"] == {"valid1": 1, "valid2": 3}

    def test_the_training_split_is_no_benchmark(self):
        with pytest.raises(ConfigError, match="train"):
            resolve_benchmark_options(CARD, {"splits": ["train"]})

    def test_missing_batches_are_noted(self, tmp_path):
        report, _ = read(tmp_path, ROW)
        (note,) = report["notes"]
        assert note.startswith("Not below the root, so not evaluated: batch3, batch4,")
        assert note.endswith("cnndm2.")
        assert "batch11" not in note

    def test_accuracy_pools_the_splits(self):
        """3 of 4 in valid2 (1 tie, wrong), 1 of 1 in valid1: 4 of 5."""
        graded = graded_items("valid2", 0, 3, 1, 4) + graded_items("valid1", 1, 1, 0, 1)
        values = metrics_of_graded(CARD, graded)
        assert values == {"accuracy": 0.8, "valid1": 1.0, "valid2": 0.75}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": 2}, r"batch11\.json, row 2: `choice` is 2; expected one of 0, 1\."),
        ({"split": "valid3"}, "row 2: split 'valid3' is not one of TL;DR. Did you mean 'valid2'"),
        ({"info": None}, "row 2: `info` must be an object, found null"),
        ({"info": INFO | {"post": None}}, "row 2, info: `post` must be a text, found null"),
        ({"summaries": ROW["summaries"][:1]}, "row 2: `summaries` must be a list of two objects"),
        ({"summaries": [{"text": "a"}, {"text": None}]}, "row 2, summaries: `text` must be a text, found null"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, ROW, ROW | change)


def test_length_control_of_the_examples(tmp_path):
    """In two of three pairs the chosen summary is longer: that ruler gets 2/3, and 1/2 when both kinds weigh alike."""
    _, items = prepared("tldr", EXAMPLES / "tldr", tmp_path)
    values = metric_values(credit_table(CARD, items, scores_by(len, items)))
    assert (values["accuracy"], values["length_controlled"]) == (pytest.approx(2 / 3), 0.5)
