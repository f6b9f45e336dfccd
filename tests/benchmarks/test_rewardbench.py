from __future__ import annotations

import json

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.grading import size_notes
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.rewardbench import SECTIONS, WEIGHTS
from rm_methods.errors import DataError

CARD = load_benchmark_card("rewardbench")
# Rows of the official split `filtered` (docs/benchmarks.md); only math-prm weighs more than its rows.
ROWS = WEIGHTS | {"math-prm": 447}


def metrics_of(right: dict[str, int], rows: dict[str, int]) -> dict[str, float]:
    """Metrics of a scorer that gets so many pairs of each subset right."""
    items = []
    scores = []
    for subset, count in rows.items():
        for number in range(count):
            items.append(BenchmarkItem(f"{subset}/{number}", subset, (), ["", ""], 0))
            scores.append(np.array([1, 0] if number < right[subset] else [0, 1], dtype=np.float32))
    return metric_values(credit_table(CARD, items, scores))


def test_the_sizes_are_those_of_the_official_split():
    assert sum(ROWS.values()) == 2985
    assert [sum(WEIGHTS[subset] for subset in subsets) for subsets in SECTIONS.values()] == [358, 456, 740, 1968]


@pytest.mark.parametrize(
    ("model", "sections", "overall"),
    [
        ("Skywork-Reward-Llama-3.1-8B", [95.81, 87.28, 90.81, 96.20], 92.52),
        ("Skywork-Reward-Llama-3.1-8B-v0.2", [94.69, 88.38, 92.70, 96.75], 93.13),
        ("Skywork-Reward-Gemma-2-27B", [95.81, 91.45, 91.89, 96.06], 93.80),
    ],
)
def test_published_models_from_their_published_subsets(shared, model, sections, overall):
    """Accuracies of subsets as published, sections and overall as on the leaderboard."""
    published = json.loads(shared("golden/rewardbench_v1_published_subsets.json").read_text())[model]
    right = {subset: round(published[subset] * ROWS[subset]) for subset in ROWS}
    assert {subset: right[subset] / ROWS[subset] for subset in ROWS} == pytest.approx({s: published[s] for s in ROWS})
    values = metrics_of(right, ROWS)
    assert [round(100 * values[section], 2) for section in SECTIONS] == sections
    assert round(100 * values["overall"], 2) == overall


def test_the_prior_sets_count_half_a_section():
    """ArmoRM as printed in the paper: sections sum to 363.2, prior sets 74.3, (2 * 363.2 + 74.3) / 9 = 89.0.

    Here: one subset a section with 1000 rows, right in 96.9, 76.8, 92.2 and 97.3%.
    """
    subsets = ("alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm")
    prior = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
    rows = dict.fromkeys((*subsets, *prior), 1000)
    right = dict(zip(subsets, (969, 768, 922, 973), strict=True)) | dict.fromkeys(prior, 743)
    values = metrics_of(right, rows)
    assert values["prior_sets"] == pytest.approx(0.743)
    assert values["overall"] == pytest.approx(3.632 / 4)
    assert values["overall_with_prior_sets"] == pytest.approx((2 * 3.632 + 0.743) / 9)
    assert round(100 * values["overall_with_prior_sets"], 1) == 89.0


def prepared(tmp_path, rows, prior=None, **options):
    (tmp_path / "filtered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if prior is not None:
        for name in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize"):
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(prior) + "\n")
    config = {"root": tmp_path, "options": options}
    report = prepare_items("rewardbench", config, None, tmp_path / "items.parquet", tmp_path / "report.json")
    return read_items(tmp_path / "items.parquet"), report


ROW = {"id": 7, "prompt": "Hi", "chosen": "yes", "rejected": "no", "subset": "hep-go", "chosen_model": "m"}


def test_missing_subsets_and_repeated_ids_are_reported(tmp_path):
    items, report = prepared(tmp_path, [ROW, ROW])
    assert [item.item_id for item in items] == ["hep-go/7", "hep-go/7#2"]
    assert report["counted"]["id occurs more than once, kept under another"]["count"] == 1
    assert "Subsets missing: alpacaeval-easy" in report["notes"][0]
    assert report["notes"][1] == "Expected 164 rows, got 2: hep-go 2 of 164. Figures are not the official ones."


def test_official_sizes_need_no_note():
    assert size_notes(ROWS, ROWS) == []


def test_other_sizes_name_the_total_and_the_subsets():
    sizes = ROWS | {"hep-go": 149}
    expected = "Expected 2,985 rows, got 2,970: hep-go 149 of 164. Figures are not the official ones."
    assert size_notes(sizes, ROWS) == [expected]


def test_roles_of_the_prior_sets_follow_from_the_position(tmp_path):
    """As in the official code, which ignores the roles in the data."""
    turns = [{"role": "x", "content": text} for text in ("a", "b", "c")]
    items, _ = prepared(tmp_path, [ROW], {"prompt": turns, "chosen": "d", "rejected": "e"}, prior_sets=True)
    prior = next(item for item in items if item.subset == "shp")
    assert [(turn["role"], turn["content"]) for turn in prior.prompt] == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert len(prior.item_id) > len("shp/1")  # a hash of the content


def test_a_repeated_row_of_a_prior_set_is_counted(tmp_path):
    prior = {"prompt": [{"role": "user", "content": "a"}], "chosen": "d", "rejected": "e"}
    _, once = prepared(tmp_path, [ROW], prior, prior_sets=True)
    assert once["counted"] == {}
    (tmp_path / "shp.jsonl").write_text(2 * (json.dumps(prior) + "\n"))
    _, twice = prepared(tmp_path, [ROW], None, prior_sets=True)
    assert twice["counted"]["id occurs more than once, kept under another"]["count"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": "hep-goo"}, r"row 1: subset 'hep-goo' is not one of RewardBench\. Did you mean 'hep-go'"),
        ({"chosen": None}, r"row 1: `chosen` must be a text, found null"),
        ({"id": None}, r"row 1: `id` must be a text or a whole number"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, [ROW | change])


def test_a_prior_prompt_that_does_not_end_with_the_user_is_refused(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=r"row 1: `prompt` must be a list of turns"):
        prepared(tmp_path, [ROW], {"prompt": turns, "chosen": "d", "rejected": "e"}, prior_sets=True)
