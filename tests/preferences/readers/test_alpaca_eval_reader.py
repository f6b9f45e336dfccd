import json
from collections import Counter

import pytest

from rm_methods.errors import DataError
from rm_methods.preferences.readers.alpaca_eval import instruction_split


def annotation(preference, output_2="model text", instruction="Why?", model="m", output_1="baseline text"):
    return {
        "instruction": instruction,
        "output_1": output_1,
        "output_2": output_2,
        "generator_1": "base",
        "generator_2": model,
        "dataset": "d",
        "preference": preference,
    }


def dropped(report):
    return {reason: entry["count"] for reason, entry in report["dropped"].items()}


def test_each_annotation_is_a_pair_with_its_strength(read, write_lines, tmp_path):
    write_lines("pairs_train.jsonl.gz", [annotation(1.9), annotation(1.25, "other")])
    write_lines(
        "v1_pairs_test.jsonl.gz", [annotation(2.0, instruction="How?"), annotation(1.0, "third", instruction="How?")]
    )
    pairs, _ = read("alpaca_eval", tmp_path)
    assert [(p.split, p.source, p.chosen, p.rejected) for p in pairs] == [
        ("train", "alpaca_eval/weighted_alpaca_eval_gpt4_turbo", "model text", "baseline text"),
        ("train", "alpaca_eval/weighted_alpaca_eval_gpt4_turbo", "baseline text", "other"),
        ("test", "alpaca_eval/alpaca_eval_gpt4", "model text", "baseline text"),
        ("test", "alpaca_eval/alpaca_eval_gpt4", "baseline text", "third"),
    ]
    assert [p.strength for p in pairs] == pytest.approx([0.8, 0.5, 1.0, 1.0])
    assert pairs[1].meta == {"chosen_model": "base", "rejected_model": "m"}


def test_ties_equal_and_empty_outputs_are_counted(read, write_lines, tmp_path):
    write_lines(
        "pairs_train.jsonl", [annotation(1.5), annotation(1.5, "baseline text"), annotation(1.7, ""), annotation(None)]
    )
    write_lines("v1_pairs_train.jsonl", [annotation(0.0), annotation(1.5), annotation(2.0)])
    pairs, report = read("alpaca_eval", tmp_path)
    assert dropped(report) == {"tie": 3, "chosen equals rejected": 1, "empty response": 1, "no preference": 1}
    assert len(pairs) == 1


def test_zero_is_a_draw_for_the_old_annotator_only(read, write_lines, tmp_path):
    path = write_lines("pairs_train.jsonl", [annotation(0.0)])
    with pytest.raises(
        DataError, match=r"row 1: preference is 0\.0; weighted_alpaca_eval_gpt4_turbo gives a number from 1 to 2"
    ):
        read("alpaca_eval", tmp_path)
    path.unlink()
    write_lines("v1_pairs_train.jsonl", [annotation(1.2)])
    with pytest.raises(DataError, match=r"alpaca_eval_gpt4 gives 1, 2, 1\.5 or 0"):
        read("alpaca_eval", tmp_path)


def test_weak_labels_and_annotators_can_be_left_out(read, write_lines, tmp_path):
    write_lines("pairs_train.jsonl", [annotation(1.6), annotation(1.75), annotation(1.0, "x")])
    write_lines("v1_pairs_train.jsonl", [annotation(2.0, "y")])
    pairs, report = read("alpaca_eval", tmp_path, minimum_strength=0.5, annotators=["weighted_alpaca_eval_gpt4_turbo"])
    assert [pair.strength for pair in pairs] == [0.5, 1.0]
    assert dropped(report) == {"strength below minimum_strength": 1, "annotator not asked for": 1}


def test_models_are_paired_by_their_preferences_against_one_baseline(read, write_lines, tmp_path):
    rows = [
        annotation(p, text, model=text)
        for p, text in [(1.0, "worst"), (1.25, "poor"), (1.75, "good"), (1.5, "equal"), (2.0, " ")]
    ]
    write_lines("pairs_train.jsonl", [*rows, annotation(2.0, "elsewhere", instruction="How?", model="elsewhere")])
    pairs, report = read("alpaca_eval", tmp_path, pairing="models")
    assert dropped(report) == {"empty response": 1}
    assert {(p.chosen, p.rejected, p.strength) for p in pairs} == {
        ("good", "worst", 0.75),
        ("good", "poor", 0.5),
        ("equal", "worst", 0.5),
    }
    assert {p.source for p in pairs} == {"alpaca_eval/weighted_alpaca_eval_gpt4_turbo/models"}
    both, report = read("alpaca_eval", tmp_path, pairing="both")
    assert dropped(report)["empty response"] == 1
    assert len(both) == 3 + 4  # four annotations are neither tied nor empty


def test_the_sample_of_model_pairs_does_not_depend_on_file_order(read, write_lines, tmp_path):
    rows = [annotation(1 + number % 2, f"text {number}", model=f"model {number}") for number in range(10)]
    found = []
    for order in (rows, rows[::-1]):
        write_lines("pairs_train.jsonl", order)
        pairs, _ = read("alpaca_eval", tmp_path, pairing="models", pairs_per_instruction=7)
        found.append({pair.pair_id for pair in pairs})
    assert found[0] == found[1]
    assert len(found[0]) == 7


def test_a_clone_of_the_repository_is_split_by_instruction(read, tmp_path):
    rows = [annotation(1.9, instruction=f"Question {number}?") for number in range(40)]
    for annotator in ("weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_gpt4"):
        folder = tmp_path / "results" / "m" / annotator
        folder.mkdir(parents=True)
        (folder / "annotations.json").write_text(
            json.dumps(rows if annotator.startswith("weighted") else [annotation(2, instruction="X?")])
        )
    pairs, report = read("alpaca_eval", tmp_path)
    assert report["rows"] == len(pairs) == 41
    assert {pair.split for pair in pairs} == {"train", "validation", "test"}
    assert all(pair.split == instruction_split(pair.prompt[0]["content"]) for pair in pairs)
    assert Counter(pair.source.split("/")[1] for pair in pairs) == {
        "weighted_alpaca_eval_gpt4_turbo": 40,
        "alpaca_eval_gpt4": 1,
    }


def test_a_wrong_field_is_named(read, write_lines, tmp_path):
    write_lines("pairs_train.jsonl", [annotation(1.9), annotation(1.9, output_2=4)])
    with pytest.raises(
        DataError, match=r"pairs_train\.jsonl, row 2: field 'output_2' is 4 \(a whole number\); expected text"
    ):
        read("alpaca_eval", tmp_path)


def test_the_counts_of_the_real_annotations(read, real_data):
    """The README of the data, by split: 19,034 / 4,130 / 5,005 rows; ties 33 / 22 / 31; equal outputs 30 / 21 / 26."""
    pairs, report = read("alpaca_eval", real_data("alpaca_eval"), annotators=["weighted_alpaca_eval_gpt4_turbo"])
    v1_rows = 24_994 + 5_419 + 6_567
    assert report["rows"] == 28_169 + v1_rows
    assert dropped(report) == {
        "chosen equals rejected": 30 + 21 + 26,
        "tie": (33 + 22 + 31) - (30 + 21 + 26),
        "empty response": 2,
        "annotator not asked for": v1_rows,
    }
    assert Counter(pair.split for pair in pairs) == {"train": 19_034 - 35, "validation": 4_130 - 22, "test": 5_005 - 31}
    assert all(pair.split == instruction_split(pair.prompt[0]["content"]) for pair in pairs)


def test_the_number_of_real_model_pairs(read, real_data):
    """44,751 pairs of models differ by 0.5 in train; 10 of them have one of the two empty outputs."""
    options = {"annotators": ["weighted_alpaca_eval_gpt4_turbo"], "pairing": "models", "pairs_per_instruction": 10_000}
    pairs, _ = read("alpaca_eval", real_data("alpaca_eval"), **options)
    train = [pair for pair in pairs if pair.split == "train"]
    assert len(train) == 44_741
    assert round(sum(len(pair.chosen) > len(pair.rejected) for pair in train) / len(train), 2) == 0.84
