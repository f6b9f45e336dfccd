"""The sentences below the over-optimization tables, and what their files leave out."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError
from rm_methods.overoptimization.best_of_n import pool_curves
from rm_methods.overoptimization.summary import summarize_best_of_n, summarize_ppo
from rm_methods.overoptimization.variant_curves import summarize_peaks
from rm_methods.overoptimization.verdict import verdict

from .made_up import pool_runs, ppo_run
from .test_variant_curves import curves_of, noisy


def records(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def said(curves, reference):
    return verdict(summarize_peaks(curves, reference), reference, "n")


def test_a_fall_is_told_with_its_interval_and_the_proxy():
    falls = replace(curves_of(noisy([0.0, 0.5, 1.0, 0.2]), "falls"), proxy=noisy([0.0, 1.0, 2.0, 3.0], seed=2))
    keeps = curves_of(noisy([0.0, 0.5, 0.8, 1.1], seed=1), "keeps")
    first, second, gap, end, sight = said([falls, keeps], "falls")
    assert first.startswith("falls: gold peaks near n = 4 and then falls by 0.7")
    assert "while the proxy rises (+1.0" in first or "while the proxy rises (+0.9" in first
    assert second == "keeps: no fall; both halves of the prompts have their highest gold at the end."
    assert gap.startswith("Gap: smaller than falls: keeps -0.7")
    assert end.startswith("Gold at n = 8: higher than falls: keeps +0.")
    assert sight.startswith("With 3 seeds and 40 prompts, a true difference of 0.")


def test_a_fall_within_the_noise_is_not_told_apart():
    (sentence,) = said([curves_of(noisy([0.0, 0.5, 1.0, 0.9], noise=1.0, seed=1), "flat")], None)
    assert sentence.startswith("flat: a fall is not told apart from 0, gap ")


def test_one_model_says_that_its_interval_counts_prompts():
    one = curves_of(noisy([0.0, 1.0, 0.2], seeds=1), "one")
    other = curves_of(noisy([0.0, 1.0, 0.2], seeds=1, seed=1), "other")
    first, _, test = said([one, other], "one")
    assert ", of one model: prompts only, while the proxy" in first
    assert test.startswith("No test against one was possible. one is a single model here")


def test_combined_models_have_no_p_value_and_no_test():
    runs = [curves_of(noisy([0.0, 1.0, 0.2], seed=seed), name) for seed, name in enumerate(("base", "rival"))]
    both = replace(curves_of(noisy([0.0, 1.0, 0.2], seeds=1, seed=5), "both"), role="combined")
    summaries = summarize_peaks([*runs, both], "base")
    cell = summaries[2].cells["gap"]
    assert (cell.verdict, cell.tested) == ("not tested", False)
    assert np.isnan(cell.p_holm)
    gaps = [summary.cells["gap"].estimate.mean for summary in summaries]
    assert cell.difference.estimate.mean == pytest.approx(gaps[2] - gaps[0])
    assert any(
        text.startswith("Difference of the gap from that of base, without a test: both ")
        for text in verdict(summaries, "base", "n")
    )


def test_files_leave_out_what_is_not_defined(tmp_path):
    runs = pool_runs(tmp_path, {"bradley_terry": 1.0, "hinge": 0.1}, prompts=8)
    runs = [replace(run, title=run.method.title()) for run in runs if run.variant == "bradley_terry" or run.seed == 0]
    summarize_best_of_n(runs, "bradley_terry", tmp_path / "out")
    base, rival = records(tmp_path / "out" / "best_of_n_table.csv")
    for column in ("gold_end", "gold_peak", "gap"):
        assert (base[f"{column}_difference"], base[f"{column}_p_holm"], base[f"{column}_p"]) == ("", "", "")
        assert rival[f"{column}_difference"] != ""
        for name in ("p", "p_holm", "detectable_difference", "difference_low"):
            assert rival[f"{column}_{name}"] == ""
    assert (rival["role"], rival["gold_end_basis"], rival["title"]) == ("trained", "items", "Hinge")
    text = (tmp_path / "out" / "best_of_n_table.txt").read_text()
    assert "(±" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("prompts", [1, 2])
def test_one_prompt_and_one_seed_still_make_a_table(tmp_path, prompts):
    runs = pool_runs(tmp_path, {"bradley_terry": 1.0, "hinge": 0.1}, seeds=(0,), prompts=prompts, responses=8)
    text = " ".join(summarize_best_of_n(runs, "bradley_terry", tmp_path / "out").text.split())
    assert "No test against bradley_terry was possible." in text
    assert ("One prompt only" in text) == (prompts == 1)


def test_ppo_on_one_seed_says_what_is_missing(tmp_path):
    text = " ".join(summarize_ppo([ppo_run(tmp_path, "bt", 0, 0.6)], "bt", tmp_path / "out").text.split())
    assert "bt: gold peaks near step 10 and then falls by 1.1" in text
    assert "No test against bt was possible. The table has no other trained method." in text


def test_a_pool_that_lacks_the_reference_has_no_differences(tmp_path):
    runs = pool_runs(tmp_path / "a", {"bradley_terry": 1.0, "hinge": 0.1}, prompts=6)
    runs += pool_runs(tmp_path / "b", {"hinge": 0.1}, prompts=6, pool="other")
    text = " ".join(summarize_best_of_n(runs, "bradley_terry", tmp_path / "out").text.split())
    assert "other: no differences, because bradley_terry has no run there." in text
    lines = records(tmp_path / "out" / "best_of_n_table.csv")
    assert [line["gap_difference"] == "" for line in lines] == [True, False, True]


def test_gold_that_is_not_a_number_is_an_error():
    item = BenchmarkItem("p", "s", [{"role": "user", "content": "Ask"}], ["a", "b"], [0.1, float("nan")])
    with pytest.raises(DataError, match="gold value 1 is not finite"):
        pool_curves([item], [np.array([1.0, 2.0])])
