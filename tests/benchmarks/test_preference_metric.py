"""The `evaluate` module: what it gives for each card is what the evaluate stage gives, and the golden values."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_methods
from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.metric_functions import benchmark_metrics, detail_keys, item_details
from rm_methods.benchmarks.rewardbench import SECTIONS, WEIGHTS
from rm_methods.errors import DataError

from .conftest import SHARED, prepare_example
from .made_up import prepared, scores_by

MODULE = Path(rm_methods.__file__).parent / "benchmarks" / "preference_metric"
CARDS = list_benchmark_cards()
STYLES = {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}
NAN = float("nan")

# Every case goes through the loaded module, in one process, in two batches where it has no details.
CODE = """
import json, sys
import evaluate

cases = json.load(open(sys.argv[2]))
modules = {name: evaluate.load(sys.argv[1], name) for name in sorted({case["benchmark"] for case in cases.values()})}
results = {}
for name, case in cases.items():
    metric = modules[case.pop("benchmark")]
    case["references"] = [label if isinstance(label, str) else json.dumps(label) for label in case["references"]]
    try:
        if "details" in case:
            results[name] = metric.compute(**case)
        else:
            for start, end in ((0, 1), (1, None)):
                if batch := {key: values[start:end] for key, values in case.items() if values[start:end]}:
                    metric.add_batch(**batch)
            results[name] = metric.compute()
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
descriptions = {name: [metric.info.description, metric.info.inputs_description] for name, metric in modules.items()}
try:
    evaluate.load(sys.argv[1], "rmbench")
except Exception as error:
    results["unknown"] = f"{type(error).__name__}: {error}"
print(json.dumps({"results": results, "descriptions": descriptions}))
"""


def case(benchmark: str, rows: Sequence[tuple[str, Any, Sequence[float]]], details=None) -> dict[str, Any]:
    """The input of the module from (subset, label, scores) of each item."""
    subsets, labels, scores = (list(column) for column in zip(*rows, strict=True))
    labels = [json.dumps(label) for label in labels]
    arguments = {"benchmark": benchmark, "predictions": scores, "references": labels, "subsets": subsets}
    return arguments | ({} if details is None else {"details": details})


def case_of_items(benchmark: str, items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """The input of the module from items."""
    card = load_benchmark_card(benchmark)
    rows = [(item.subset, item.label, values.tolist()) for item, values in zip(items, scores, strict=True)]
    return case(benchmark, rows, [item_details(card, item) for item in items] if detail_keys(card) else None)


def right_and_wrong(subset: str, right: int, total: int, tied: int = 0) -> list[tuple[str, Any, list[float]]]:
    """Pairs of a subset: so many right, then so many equal, the others wrong."""
    pairs = [[1.0, 0.0]] * right + [[1.0, 1.0]] * tied + [[0.0, 1.0]] * (total - right - tied)
    return [(subset, 0, scores) for scores in pairs]


def ties_case(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of Ties: {"id": "ref:0" or "tied:0", "num_correct", "scores"}."""
    parts = [row["id"].split(":") for row in rows]
    details = [{"kind": kind, "ties": number} for kind, number in parts]
    return case("rewardbench2", [("ties", {"correct": row["num_correct"]}, row["scores"]) for row in rows], details)


def matrix_case(matrix: Sequence[Sequence[float]], n_rows: int) -> dict[str, Any]:
    """Rows of RM-Bench chat whose shares of won comparisons are the matrix, in percent, whose rows must fall.

    Rejected answers score 0, 1, 2. A chosen answer beats the first so many of them.
    """
    wins = [[round(share * n_rows / 100) for share in row] for row in matrix]
    assert [[round(100 * won / n_rows, 2) for won in row] for row in wins] == [list(row) for row in matrix]
    items = []
    for number in range(n_rows):
        chosen = [sum(number < won for won in row) - 0.5 for row in wins]
        items.append(("chat", STYLES, [*chosen, 0.0, 1.0, 2.0]))
    return case("rm_bench", items)


def golden_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """The cases whose values are known from official code or published results; none without the public files."""
    if not (SHARED / "golden").is_dir():
        return {}
    golden = json.loads((SHARED / "golden" / "golden_metric_cases.json").read_text())
    cases = {f"ties/{number}": ties_case(one["rows"]) for number, one in enumerate(golden["rb2_ties"])}
    for number, one in enumerate(golden["rb2_best_of_4"]):
        cases[f"best of four/{number}"] = case("rewardbench2", [("math", {"correct": 1}, one["scores"])])
    for number, one in enumerate(golden["rm_bench"]):
        rows = [(row.get("domain", "chat"), STYLES, row["score_chosen"] + row["score_rejected"]) for row in one["rows"]]
        cases[f"rm_bench/{number}"] = case("rm_bench", rows)
    cases["matrix"] = matrix_case(golden["rm_bench_fig2"]["matrix"], 183)
    published = json.loads((SHARED / "golden" / "rewardbench_v1_published_subsets.json").read_text())
    sizes = WEIGHTS | {"math-prm": 447}
    for model, accuracies in published.items():
        rows = [row for s in sizes for row in right_and_wrong(s, round(accuracies[s] * sizes[s]), sizes[s])]
        cases[f"rewardbench/{model}"] = case("rewardbench", rows)
    for name, root, options in (
        ("hh_rlhf", "hh_rlhf", {"subsets": ["harmless-base"]}),
        ("judge_bench", "judgebench", {"response_model": "claude"}),
    ):
        _, items = prepared(name, SHARED / "data" / root, folder, **options)
        cases[f"longest/{name}"] = case_of_items(name, items, scores_by(len, items))
    return cases


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the module answers in a process of its own, offline, with its caches in a temporary folder."""
    home = tmp_path_factory.mktemp("hf")
    cases = golden_cases(home)
    expected = {}
    for name in CARDS:
        card = load_benchmark_card(name)
        items = prepare_example(card, home)
        scores = scores_by(lambda text: float(sum(map(ord, text)) % 7), items)
        expected[name] = metric_values(credit_table(card, items, scores))
        cases[f"contract/{name}"] = case_of_items(name, items, scores)
    cases |= {
        "by hand": case("rm_bench", [("chat", STYLES, [3, 1, 2, 2, 0, 3]), ("code", STYLES, [1, 1, 1, 0, 0, 0])]),
        "judge": case(
            "judge_bench",
            [("mmlu-pro", "A>B", [2, 1]), ("mmlu-pro", "B>A", [1, 1]), ("livecodebench", "B>A", [NAN, 1])],
        ),
        "rmb": case("rmb", right_and_wrong("helpfulness_pairwise", 675, 849, tied=12)),
        "lists": case(
            "rmb",
            [("harmlessness_bon", 0, [2, 1, 0]), ("harmlessness_bon", 0, [2, 2, 0]), ("helpfulness_bon", 0, [2, 1])],
        ),
        "not JSON": case("judge_bench", [("mmlu-pro", "A>B", [2, 1])]) | {"references": ["A>B"]},
        "subset": case("judge_bench", [("mmlu", "A>B", [2, 1])]),
        "two dimensions": case("judge_bench", [("mmlu-pro", "A>B", [[2], [1]])]),
        "no details of ties": case("rewardbench2", [("ties", {"correct": 1}, [2, 1])]),
    }
    (home / "cases.json").write_text(json.dumps(cases))
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(MODULE), str(home / "cases.json")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]) | {"expected": expected}


@pytest.fixture
def results(answers):
    return answers["results"]


@pytest.fixture
def golden(results):
    """The results; the test is skipped without the public files."""
    if "matrix" not in results:
        pytest.skip("the public data is not on this machine")
    return results


def percent(values: dict[str, float], *names: str) -> list[float]:
    return [round(100 * values[name], 2) for name in names]


@pytest.mark.parametrize("name", CARDS)
def test_each_card_has_all_metrics_of_the_evaluate_stage(answers, name):
    assert answers["results"][f"contract/{name}"] == pytest.approx(answers["expected"][name])
    assert set(load_benchmark_card(name).columns) & set(answers["expected"][name])


@pytest.mark.parametrize("name", CARDS)
def test_each_card_describes_its_inputs(answers, name):
    card = load_benchmark_card(name)
    description, inputs = answers["descriptions"][name]
    assert description.startswith(card.title)
    assert card.subsets[0] in inputs
    assert all(f"{key}: " in inputs for key in detail_keys(card))
    assert ("details" in inputs) == bool(detail_keys(card))


def test_the_chat_item_by_hand_is_a_third_two_thirds_a_third_and_the_code_item_all_right(results):
    values = results["by hand"]
    assert [values[name] for name in ("easy", "normal", "hard", "chat", "code")] == pytest.approx(
        [2 / 3, 5 / 6, 2 / 3, 4 / 9, 1]
    )


def test_single_and_double_game_with_ties_and_a_missing_score(results):
    values = results["judge"]
    assert values["overall"] == values["overall_double_game"] == pytest.approx(1 / 3)
    assert values["overall_single_game"] == pytest.approx(2 / 3)
    assert values["coding"] == 0.0


def test_a_list_passes_only_above_every_loser(results):
    values = results["lists"]
    assert (values["harmlessness_bon"], values["helpfulness_bon"], values["overall"]) == (0.5, 1.0, 0.75)


def test_the_published_pairs_of_rmb(results):
    """ArmoRM on Brainstorming/Idea Development: 675 of 849, 12 ties wrong."""
    assert percent(results["rmb"], "helpfulness_pairwise", "overall") == [79.51, 79.51]


def test_ties_of_rewardbench_2(golden):
    cases = json.loads((SHARED / "golden" / "golden_metric_cases.json").read_text())["rb2_ties"]
    refused = 0
    for number, one in enumerate(cases):
        result = golden[f"ties/{number}"]
        if isinstance(one["overall_score"], str):
            refused += 1
            assert "ref has one right answer, tied several" in result
        else:
            assert result["ties"] == pytest.approx(one["overall_score"], abs=1e-6), one["name"]
    assert (len(cases), refused) == (6, 1)


def test_best_of_four_of_rewardbench_2(golden):
    cases = json.loads((SHARED / "golden" / "golden_metric_cases.json").read_text())["rb2_best_of_4"]
    assert [golden[f"best of four/{number}"]["math"] for number in range(len(cases))] == [c["result"] for c in cases]


def test_rm_bench_as_the_official_code(golden):
    names = {"hard_acc": "hard", "normal_acc": "normal", "easy_acc": "easy", "total_avg_acc": "overall"}
    for number, one in enumerate(json.loads((SHARED / "golden" / "golden_metric_cases.json").read_text())["rm_bench"]):
        values = golden[f"rm_bench/{number}"]
        assert {name: values[names.get(name, name)] for name in one["result"]} == pytest.approx(one["result"])


def test_the_papers_matrix_of_rm_bench(golden):
    assert percent(golden["matrix"], "chat_hard", "chat_normal", "chat_easy") == [18.58, 72.13, 93.26]


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("Skywork-Reward-Llama-3.1-8B", [95.81, 87.28, 90.81, 96.20, 92.52]),
        ("Skywork-Reward-Llama-3.1-8B-v0.2", [94.69, 88.38, 92.70, 96.75, 93.13]),
        ("Skywork-Reward-Gemma-2-27B", [95.81, 91.45, 91.89, 96.06, 93.80]),
    ],
)
def test_published_sections_of_rewardbench(golden, model, values):
    assert percent(golden[f"rewardbench/{model}"], *SECTIONS, "overall") == values


def test_the_longer_answer(golden):
    assert percent(golden["longest/hh_rlhf"], "accuracy") == [44.25]
    assert percent(golden["longest/judge_bench"], "overall", "overall_single_game") == [43.70, 44.44]


def test_bad_input_is_explained(results):
    assert results["not JSON"].startswith("DataError: references, row 1: 'A>B' is not JSON")
    assert "unknown subset 'mmlu'" in results["subset"]
    assert "Did you mean 'rm_bench'" in results["unknown"]
    assert "don't match the expected format" in results["two dimensions"]
    assert "item 'row 1' of Ties needs `kind` (ref or tied) and `ties`" in results["no details of ties"]


class TestPlainFunction:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scores": [[[2], [1]]]}, r"item 1: scores of the shape \(2, 1\) are not one number a response"),
            ({"scores": [["a", 1]]}, r"item 1: scores \['a', 1\] are not numbers"),
            ({"scores": [3]}, "item 1: 'int' object is not iterable"),
            ({"scores": [[1]]}, "an item of JudgeBench has 2 responses, found 1"),
            ({"labels": []}, "1 scores, 0 labels, 1 subsets"),
            ({"details": []}, "1 scores, 1 labels, 1 subsets, 0 details"),
            ({"details": [{"scenario": "S1"}]}, "item 1: unknown detail 'scenario'. No name can be given here"),
            ({"details": ["S1"]}, "item 1: details 'S1' are not a mapping"),
        ],
    )
    def test_wrong_shapes_are_refused(self, changes, message):
        arguments = {"scores": [[2, 1]], "labels": ["A>B"], "subsets": ["mmlu-pro"]} | changes
        with pytest.raises(DataError, match=message):
            benchmark_metrics("judge_bench", **arguments)

    def test_details_of_some_items_only_are_refused(self):
        details = [{"domains": ["math"]}, {}]
        with pytest.raises(
            DataError, match="item 2 has the details none, other items of human_preference have domains"
        ):
            benchmark_metrics("ppe_preference", [[1, 0]] * 2, [0, 0], ["human_preference"] * 2, details=details)

    def test_texts_that_do_not_fit_the_scores_are_refused(self):
        arguments = {"scores": [[1, 0]], "labels": [0], "subsets": ["test"]}
        with pytest.raises(DataError, match="item 1 has 1 responses but 2 scores"):
            benchmark_metrics("heldout", **arguments, details=[{"responses": ["a"]}])
        with pytest.raises(DataError, match="`responses` must be a list of texts"):
            benchmark_metrics("heldout", **arguments, details=[{"responses": "ab"}])

    def test_a_prompt_of_ties_needs_both_rows(self):
        arguments = {"scores": [[2, 1]], "labels": [{"correct": 1}], "subsets": ["ties"]}
        with pytest.raises(DataError, match="prompt '3' of Ties has the rows ref; expected one ref and one tied"):
            benchmark_metrics("rewardbench2", **arguments, details=[{"kind": "ref", "ties": "3"}])

    def test_without_details_their_metrics_are_left_out(self):
        values = benchmark_metrics("heldout", [[1, 0], [0, 1]], [0, 0], ["test", "test"])
        assert values == {"test": 0.5, "mean": 0.5}
        assert not any(math.isnan(value) for value in values.values())
