"""What every benchmark must fulfill.  The tests run by themselves on every card in data/benchmarks."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from rm_methods.benchmarks.cards import (
    benchmark_module,
    list_benchmark_cards,
    load_benchmark_card,
    resolve_benchmark_options,
)
from rm_methods.benchmarks.contamination import count_contamination
from rm_methods.benchmarks.evaluation import credit_table, evaluate_run, metric_values, tie_rate
from rm_methods.benchmarks.item import write_items
from rm_methods.errors import ConfigError, DataError
from rm_methods.preferences.pair import make_pair

from .made_up import perfect_scores, scores_by, write_score_table

pytestmark = pytest.mark.parametrize(
    "card", [load_benchmark_card(name) for name in list_benchmark_cards()], ids=lambda card: card.name
)

IDENTITY = {"variant": "v", "method": "m", "seed": 0, "run_key": "k"}


def metrics_of(card, items, scores):
    return metric_values(credit_table(card, items, scores))


def strict_metrics(card, items):
    return [metric.name for metric in benchmark_module(card).metrics(items) if metric.strict]


def test_the_module_has_everything_the_stages_call(card):
    module = benchmark_module(card)
    assert all(callable(getattr(module, name)) for name in ("read", "grade", "comparisons", "metrics"))
    assert module.TIE_RULE.strip()
    assert module.__doc__.strip()


def test_options_explain_themselves_and_defaults_are_allowed(card):
    for name, schema in benchmark_module(card).OPTIONS.items():
        assert schema["description"].strip(), name
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema).validate(schema["default"])
    assert set(resolve_benchmark_options(card)) == set(benchmark_module(card).OPTIONS)


def test_an_unknown_option_is_refused(card):
    with pytest.raises(ConfigError, match=f"benchmarks.{card.name}.options.lmit: unknown option. Did you mean 'limit'"):
        resolve_benchmark_options(card, {"lmit": 3})


def test_columns_are_metrics_and_the_examples_cover_the_default_subsets(card, example_items):
    items = example_items(card)
    options = resolve_benchmark_options(card)
    assert set(card.columns_with(options)) <= {metric.name for metric in benchmark_module(card).metrics(items)}
    asked = options.get("splits") or card.subsets
    assert {item.subset for item in items} == set(asked)


def test_every_row_becomes_an_item_or_is_counted(card, example_items, tmp_path):
    items = example_items(card)
    report = json.loads((tmp_path / f"{card.name}.json").read_text())
    assert report["n_items"] == len(items)
    assert report["n_rows"] == len(items) + sum(entry["count"] for entry in report["excluded"].values())
    assert sum(report["subsets"].values()) == len(items)
    assert all(len(source["sha256"]) == 64 and Path(source["file"]).is_file() for source in report["sources"])


def test_items_are_plain_text_under_a_prompt_that_ends_with_the_user(card, example_items):
    for item in example_items(card):
        assert item.prompt[-1]["role"] == "user"
        assert len(item.responses) >= 2
        assert all(isinstance(response, str) for response in item.responses)


def test_the_limit_takes_the_same_items_in_any_order_and_counts_the_rest(card, example_items):
    from rm_methods.benchmarks.grading import sample_items
    from rm_methods.benchmarks.sources import ItemReport

    items, report = example_items(card), ItemReport()
    options = {"limit": 1, "sample_seed": 0}
    drawn = list(sample_items(items, options, report))
    assert {item.subset for item in drawn} == {item.subset for item in items}
    assert len(drawn) == len({item.subset for item in items})
    assert len(drawn) + report.excluded.get("not drawn by options.limit", {"count": 0})["count"] == len(items)
    assert len(report.notes) == (len(drawn) < len(items))
    backwards = list(sample_items(items[::-1], options, ItemReport()))
    assert {item.item_id for item in backwards} == {item.item_id for item in drawn}


def limits(card, items, side):
    return {metric.name: metric.limits[side] for metric in benchmark_module(card).metrics(items)}


def test_a_perfect_scorer_gets_the_most_and_its_opposite_the_least(card, example_items):
    items = example_items(card)
    perfect = perfect_scores(card, items)
    assert metrics_of(card, items, perfect) == pytest.approx(limits(card, items, 1))
    assert metrics_of(card, items, [-scores for scores in perfect]) == pytest.approx(limits(card, items, 0))


def test_a_constant_scorer_gets_no_credit_in_strict_metrics_and_ties_everywhere(card, example_items):
    items = example_items(card)
    constant = scores_by(lambda text: 0.5, items)
    values = metrics_of(card, items, constant)
    strict = strict_metrics(card, items)
    assert {values[name] for name in strict} == {0.0}
    columns = card.columns_with(resolve_benchmark_options(card))
    assert all(values[name] <= card.chance for name in columns if name not in strict)
    assert tie_rate(card, items, constant) == 1.0


def test_missing_scores_get_no_credit_and_are_counted(card, example_items, tmp_path):
    items = example_items(card)
    write_items(items, tmp_path / "items.parquet")
    table = write_score_table(items, scores_by(lambda text: float("nan"), items), tmp_path / "scores.parquet")
    run = [(card.name, tmp_path / "items.parquet", table)]
    result = evaluate_run(run, IDENTITY, tmp_path / "metrics.json", tmp_path / "credits.parquet")["benchmarks"][
        card.name
    ]
    assert set(result["metrics"].values()) == {0.0}
    assert (result["n_scored"], result["n_total"], result["tie_rate"]) == (0, len(items), 0.0)
    assert "calibration" not in result


def test_one_missing_score_takes_credit_away_but_not_the_item(card, example_items):
    items = example_items(card)
    scores = perfect_scores(card, items)
    full = credit_table(card, items, scores)
    scores[0] = np.where(np.arange(len(scores[0])) == 0, np.float32("nan"), scores[0])
    table = credit_table(card, items, scores)
    assert table["item_id"] == full["item_id"]
    lost = [row for row in range(len(full["credit"])) if table["credit"][row] < full["credit"][row]]
    assert {full["item_id"][row] for row in lost} == {items[0].item_id}
    assert all(
        after == before
        for row, (before, after) in enumerate(zip(full["credit"], table["credit"], strict=True))
        if row not in lost
    )


def test_no_missing_score_ever_raises_a_credit(card, example_items):
    """Whatever the other scores are, and whichever response has none."""
    grade = benchmark_module(card).grade
    generator = np.random.default_rng(0)
    for item in example_items(card):
        for _ in range(20):
            scores = generator.integers(0, 4, size=len(item.responses)).astype(np.float32)
            for response in range(len(scores)):
                worst = min_credits(grade, item.label, scores, response)
                missing = np.where(np.arange(len(scores)) == response, np.float32("nan"), scores)
                credits = grade(item.label, missing)
                assert all(credits[name] <= worst[name] + 1e-9 for name in credits)


def min_credits(grade, label, scores, response):
    """The least credits over all ranks that the response might have had."""
    results = []
    for value in (*np.unique(scores), scores.min() - 1, scores.max() + 1):
        results.append(grade(label, np.where(np.arange(len(scores)) == response, np.float32(value), scores)))
    return {name: min(result[name] for result in results) for name in results[0]}


def test_weights_of_a_metric_sum_to_one_and_no_subset_counts_twice(card, example_items):
    for metric in benchmark_module(card).metrics(example_items(card)):
        assert sum(weight for weight, _ in metric.strata.values()) == pytest.approx(1.0)
        subsets = [subset for _, subsets in metric.strata.values() for subset in subsets]
        assert len(subsets) == len(set(subsets)) > 0


def test_the_order_of_the_items_has_no_influence(card, example_items):
    items = example_items(card)
    scores = scores_by(lambda text: float(sum(map(ord, text)) % 97), items)
    shuffled = random.Random(3).sample(list(zip(items, scores, strict=True)), len(items))
    assert metrics_of(card, [item for item, _ in shuffled], [score for _, score in shuffled]) == metrics_of(
        card, items, scores
    )


def test_an_unknown_subset_is_an_error(card, example_items):
    items = example_items(card)
    items[0] = replace(items[0], subset="no such subset")
    with pytest.raises(DataError, match="unknown subset 'no such subset'"):
        metrics_of(card, items, perfect_scores(card, items))


@pytest.mark.parametrize("label", ["chosen", None, 17, True, {"chosen": [0]}])
def test_a_label_the_benchmark_does_not_have_is_an_error(card, example_items, label):
    items = example_items(card)
    scores = perfect_scores(card, items)
    items[0] = replace(items[0], label=label)
    with pytest.raises(DataError, match=r"item .*: label .* is not allowed"):
        metrics_of(card, items, scores)


def test_items_that_were_trained_on_are_counted_and_others_are_not(card, example_items):
    items = example_items(card)
    trained_on = [make_pair(item.prompt, *item.responses[:2], split="train", source="leak") for item in items]
    report = count_contamination(card.name, items, trained_on)
    assert report["items"] == len(items)
    assert report["counts"]["prompt"] == report["counts"]["prompt_and_response"] == len(items)
    assert sum(entry["prompt"] for entry in report["subsets"].values()) == len(items)
    prompt = [{"role": "user", "content": "An utterly unrelated question about nothing that any benchmark asks?"}]
    unrelated = [make_pair(prompt, "Neither here.", "Nor there.", split="train", source="clean")]
    assert set(count_contamination(card.name, items, unrelated)["counts"].values()) == {0}
