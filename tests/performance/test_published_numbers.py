"""performance/published_numbers.py: what the rules get, ties left out, and counts that do not use the readers."""

from __future__ import annotations

import json

import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.item import BenchmarkItem
from tests.benchmarks.conftest import EXAMPLES
from tests.performance.test_gpu_script import script


@pytest.fixture(scope="module")
def numbers():
    return script("published_numbers")


def reference(numbers, **changes):
    values = {"benchmark": "rewardbench", "rule": "longest", "figure": "x", "value": None, "source": "s"}
    return numbers.Reference(**(values | {"subsets": ("hep-go",)} | changes))


PAIRS = [
    BenchmarkItem(str(number), "hep-go", [{"role": "user", "content": "?"}], responses, 0)
    for number, responses in enumerate((["long", "s"], ["s", "long"], ["same", "text"], ["longer", "s"]))
]


@pytest.mark.parametrize(
    ("rule", "ties", "value", "items"),
    [("longest", "wrong", 50.0, 4), ("longest", "left out", 200 / 3, 3), ("shortest", "left out", 100 / 3, 3)],
)
def test_equal_lengths_are_wrong_or_left_out_and_counted(numbers, rule, ties, value, items):
    """Longer, shorter, equal, longer: 2 of 4 are right, or 2 of the 3 that are not equal."""
    result = numbers.figure(load_benchmark_card("rewardbench"), PAIRS, reference(numbers, rule=rule, ties=ties))
    assert result == numbers.Figure(pytest.approx(value), items, 1)


def test_a_metric_of_the_benchmark_leaves_the_same_items_out(numbers):
    asked = reference(numbers, figure="overall", subsets=(), ties="left out")
    result = numbers.figure(load_benchmark_card("rewardbench"), PAIRS, asked)
    assert result == numbers.Figure(pytest.approx(200 / 3), 3, 1)


def test_right_answers_share_the_top(numbers):
    """The longest answers of ["aa", "b", "cc"] are the first and the last, and the first two are right."""
    item = BenchmarkItem("t", "ties", [{"role": "user", "content": "?"}], ["aa", "b", "cc"], {"correct": 2})
    asked = reference(numbers, benchmark="rewardbench2", subsets=("ties",), credit=numbers.TOP)
    assert numbers.figure(load_benchmark_card("rewardbench2"), [item], asked).value == 50.0


@pytest.mark.parametrize("benchmark", ["hh_rlhf", "judge_bench", "alpaca_eval_pool"])
def test_raw_lines_give_what_reader_and_grading_give(numbers, benchmark):
    root = EXAMPLES / benchmark
    references = [asked for asked in numbers.REFERENCES if asked.benchmark == benchmark]
    assert references
    for asked in references:
        items = numbers.items_of(benchmark, root, asked.options)
        ours = numbers.figure(load_benchmark_card(benchmark), items, asked)
        raw = numbers.RAW_FIGURES[benchmark](root, asked)
        assert (raw.items, raw.tied) == (ours.items, ours.tied)
        assert raw.value == pytest.approx(ours.value)


def test_math_prm_counts_half_of_reasoning(numbers):
    accuracies = dict.fromkeys(numbers.rewardbench.WEIGHTS, 0.0) | {"math-prm": 1.0}
    assert numbers.section_means(accuracies) == pytest.approx([0, 0, 0, 50, 12.5])


def test_win_rates_name_a_model_without_a_published_figure(numbers, tmp_path):
    """Preferences 1 and 2: the mean less 1 is 50%, and 51.5 is published."""
    rows = [{"generator_2": name, "preference": value} for name in ("a", "b") for value in (1.0, 2.0)]
    (tmp_path / "pairs_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = numbers.win_rates_text(tmp_path, {"a": {"published_win_rate": 51.5}})
    assert text == "1 models, 2 to 2 judged answers: at most 2e+00 points apart; no published figure for b"


def test_a_table_without_data_says_so_in_every_row(numbers, capsys):
    numbers.main([])
    lines = capsys.readouterr().out.splitlines()
    rules = [line for line in lines if "| longest |" in line or "| shortest |" in line]
    assert len(rules) == len(numbers.REFERENCES)
    assert all(numbers.NOT_AT_HAND in line for line in rules)
    assert sum("18.58 / 72.13 / 93.26 |" in line for line in lines) == 1


def test_the_table_shows_the_figure_beside_its_reference(numbers, capsys):
    numbers.main(["--root", f"hh_rlhf={EXAMPLES / 'hh_rlhf'}"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| hh_rlhf")]
    _, _, _, _, ours, raw, counts, *_ = (cell.strip() for cell in line.split("|"))
    assert ours == raw != ""
    assert "raw" not in counts
