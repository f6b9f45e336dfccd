from __future__ import annotations

import gzip
import json
import shutil

import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items, tie_rate
from rm_methods.benchmarks.hh_rlhf import shared_prompt
from rm_methods.benchmarks.item import read_items
from rm_methods.errors import DataError

from .conftest import EXAMPLES
from .made_up import scores_by

CARD = load_benchmark_card("hh_rlhf")
HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


def prepare(root, tmp_path, **options):
    report = prepare_items(
        "hh_rlhf", {"root": str(root), "options": options}, None, tmp_path / "i.parquet", tmp_path / "r.json"
    )
    return report, read_items(tmp_path / "i.parquet")


def write_rows(tmp_path, *rows: tuple[str, str]):
    folder = tmp_path / "root" / "harmless-base"
    folder.mkdir(parents=True)
    with gzip.open(folder / "test.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in rows)
    return tmp_path / "root"


class TestRows:
    def test_the_prompt_ends_before_the_last_turn(self, tmp_path):
        _, items = prepare(EXAMPLES / "hh_rlhf", tmp_path)
        second = items[1]
        assert [message["content"] for message in second.prompt] == ["One?", "Two.", "Three?"]
        assert second.responses == [
            "Four.",
            "Seven.\u2028Or so.",
        ]  # a line separator inside a text does not cut the row
        assert second.label == 0

    def test_differing_prompts_are_compared_under_the_turns_they_share(self, tmp_path):
        report, items = prepare(EXAMPLES / "hh_rlhf", tmp_path)
        third = items[2]
        assert third.prompt == [{"role": "user", "content": "Where is it?"}]
        assert third.responses == ["Left.", "I don't know."]
        assert report["counted"]["the two prompts differ: last turns compared under the shared turns"]["count"] == 1

    def test_differing_prompts_can_be_left_out_and_are_then_counted(self, tmp_path):
        report, items = prepare(EXAMPLES / "hh_rlhf", tmp_path, differing_prompts="exclude")
        assert (report["n_rows"], len(items)) == (7, 6)
        assert report["excluded"]["the two prompts differ"]["count"] == 1

    def test_consecutive_turns_are_merged_and_empty_answers_kept_and_both_counted(self, tmp_path):
        report, items = prepare(EXAMPLES / "hh_rlhf", tmp_path)
        fourth = items[3]
        assert fourth.prompt == [{"role": "user", "content": "Hello?\n\nAnyone?"}]
        assert fourth.responses == ["Here.", ""]
        assert report["counted"]["consecutive turns of one speaker in the prompt: merged"]["count"] == 1
        assert report["counted"]["empty answer, kept"]["count"] == 1

    def test_what_is_not_a_transcript_is_excluded_with_its_reason(self, tmp_path):
        good = HUMAN + "Hi" + ASSISTANT + "Hello"
        root = write_rows(tmp_path, (good, good + "!"), ("Hi there", good), (good, HUMAN + "Hi"))
        report, items = prepare(root, tmp_path)
        assert len(items) == 1
        assert report["excluded"]["not a transcript"]["count"] == 2
        assert "row 2: chosen:" in report["excluded"]["not a transcript"]["examples"][0]
        assert "row 3: rejected:" in report["excluded"]["not a transcript"]["examples"][1]

    def test_transcripts_without_a_shared_turn_are_excluded(self, tmp_path):
        good, other = HUMAN + "Hi" + ASSISTANT + "Hello", HUMAN + "Bye" + ASSISTANT + "See you"
        report, items = prepare(write_rows(tmp_path, (good, good + "!"), (good, other)), tmp_path)
        assert len(items) == 1
        assert report["excluded"]["no prompt that ends with a Human turn"]["count"] == 1

    def test_a_row_that_occurs_twice_stays_two_items(self, tmp_path):
        row = (HUMAN + "Hi" + ASSISTANT + "Hello", HUMAN + "Hi" + ASSISTANT + "Go")
        report, items = prepare(write_rows(tmp_path, row, row), tmp_path)
        assert items[1].item_id == items[0].item_id + "#2"
        assert items[1].group == items[0].group
        assert report["counted"]["row occurs more than once, kept"]["count"] == 1

    def test_a_row_without_a_transcript_names_file_and_row(self, tmp_path):
        root = write_rows(tmp_path, (HUMAN + "Hi" + ASSISTANT + "Hello", None))
        with pytest.raises(DataError, match=r"test\.jsonl\.gz, row 1: `rejected` must be a text, found null"):
            prepare(root, tmp_path)


def two_tranches(tmp_path):
    for name in ("harmless-base", "helpful-base"):
        shutil.copytree(EXAMPLES / "hh_rlhf" / name, tmp_path / "root" / name)
    return tmp_path / "root"


class TestSubsets:
    def test_missing_tranches_are_noted_and_accuracy_pools_rows(self, tmp_path):
        report, items = prepare(two_tranches(tmp_path), tmp_path)
        assert report["subsets"] == {"harmless-base": 4, "helpful-base": 1}
        assert report["notes"] == [
            "Not below the root, so not evaluated: helpful-online, helpful-rejection-sampled.",
            "Expected 2,312 rows, got 4: harmless-base 4 of 2,312. Figures are not the official ones.",
        ]
        scores = scores_by(lambda text: float(text == "A plum."), items)
        values = metric_values(credit_table(CARD, items, scores))
        # "A plum." is one of the three chosen responses that are shorter than their rival.
        controlled = {"length_controlled": pytest.approx(1 / 6)}
        assert values == controlled | {"accuracy": pytest.approx(1 / 5), "harmless-base": 0.0, "helpful-base": 1.0}

    def test_a_tranche_that_is_asked_for_must_be_there(self, tmp_path):
        with pytest.raises(DataError, match=r"no file helpful-online/test.jsonl\* is here"):
            prepare(two_tranches(tmp_path), tmp_path, subsets=["helpful-online"])


def test_shared_prompt_ends_with_the_last_user_turn_in_common():
    user, assistant, again = (
        {"role": role, "content": text} for role, text in [("user", "a"), ("assistant", "b"), ("user", "c")]
    )
    assert shared_prompt([user, assistant, again], [user, assistant]) == [user]
    assert shared_prompt([user, assistant, again], [user, assistant, again, assistant]) == [user, assistant, again]
    assert shared_prompt([assistant], [assistant]) == []


class TestPublicFile:
    """harmless-base/test: 2,312 rows."""

    def test_all_rows_are_accounted_for_and_the_length_ruler_gets_44_25_percent(self, shared, tmp_path):
        report, items = prepare(shared("data/hh_rlhf"), tmp_path)
        assert (report["n_rows"], report["n_items"], report["excluded"]) == (2312, 2312, {})
        assert {remark: entry["count"] for remark, entry in report["counted"].items()} == {
            "empty answer, kept": 4,
            "consecutive turns of one speaker in the prompt: merged": 4,
            "the two prompts differ: last turns compared under the shared turns": 5,
        }
        scores = scores_by(len, items)
        assert metric_values(credit_table(CARD, items, scores))["accuracy"] == 1023 / 2312  # 44.25%
        assert tie_rate(CARD, items, scores) == 11 / 2312

    def test_without_the_differing_prompts_it_is_another_number(self, shared, tmp_path):
        report, items = prepare(shared("data/hh_rlhf"), tmp_path, differing_prompts="exclude")
        assert report["n_items"] == 2307
        assert metric_values(credit_table(CARD, items, scores_by(len, items)))["accuracy"] == 1021 / 2307  # 44.26%

    def test_a_sample_of_500_is_seeded_and_nested(self, shared, tmp_path):
        root = shared("data/hh_rlhf")
        _, sample = prepare(root, tmp_path, limit=500)
        ids = {item.item_id for item in sample}
        assert len(ids) == 500
        assert {item.item_id for item in prepare(root, tmp_path, limit=100)[1]} < ids
        assert {item.item_id for item in prepare(root, tmp_path, limit=500, sample_seed=1)[1]} != ids
