from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError, UserError
from rm_methods.experiment.layout import best_of_n_files, ppo_files
from rm_methods.overoptimization.figures import draw_best_of_n, draw_ppo
from rm_methods.overoptimization.ppo_evaluations import ppo_curves, read_ppo_run
from rm_methods.overoptimization.samples_page import fenced, samples_page
from rm_methods.overoptimization.summary import summarize_best_of_n, summarize_ppo
from rm_methods.overoptimization.variant_curves import combine_seeds

from .made_up import curves_of_run, pool_runs, ppo_run


def records(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


class TestBestOfN:
    @pytest.fixture(scope="class")
    def written(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("best_of_n")
        runs = pool_runs(folder, {"bradley_terry": 1.0, "robust": 0.1})
        return runs, folder / "out", summarize_best_of_n(runs, "bradley_terry", folder / "out")

    def test_it_writes_exactly_the_files_it_names(self, written):
        _, out, summary = written
        assert (
            sorted(summary.files) == sorted(best_of_n_files(["policy"])) == sorted(path.name for path in out.iterdir())
        )
        assert all(path.stat().st_size > 0 for path in summary.files.values())

    def test_curves_are_those_of_every_run(self, written):
        runs, out, _ = written
        rows = records(out / "best_of_n.csv")
        assert len(rows) == 6 * 7
        run = runs[4]
        curves = curves_of_run(run)
        of_run = [row for row in rows if (row["variant"], row["seed"]) == (run.variant, str(run.seed))]
        assert [int(row["n"]) for row in of_run] == [1, 2, 4, 8, 16, 32, 64]
        assert [float(row["gold"]) for row in of_run] == pytest.approx(curves.gold.mean(axis=0).tolist())
        assert [float(row["kl_bound"]) for row in of_run] == pytest.approx(curves.kl_bound.tolist())
        assert float(of_run[0]["proxy_standardized"]) == pytest.approx(0, abs=1e-6)

    def test_runs_have_their_peak_and_gap(self, written):
        rows = records(written[1] / "best_of_n_runs.csv")
        for row in rows:
            assert float(row["gap"]) == pytest.approx(float(row["gold_peak"]) - float(row["gold_end"]))
            assert (row["responses"], row["duplicates"], row["n_end"]) == ("1536", "0", "64")

    def test_the_proxy_that_hacks_falls_and_the_robust_one_does_not(self, written):
        hacked, robust = records(written[1] / "best_of_n_table.csv")
        assert (hacked["variant"], robust["variant"]) == ("bradley_terry", "robust")
        assert float(hacked["gap_low"]) > 0 > float(robust["gap"]) - 0.05
        assert robust["gap_verdict"] == "significant"
        assert float(robust["gap_difference"]) == pytest.approx(float(robust["gap"]) - float(hacked["gap"]))
        assert int(hacked["peak"]) < int(robust["peak"])
        assert float(hacked["fit_b"]) > 0
        assert hacked["fit_refused"] == ""

    def test_tables_say_how_to_read_them(self, written):
        out, summary = written[1], written[2]
        assert "Gold at n = 64" in summary.text
        assert "held out" in summary.text
        assert "1536 responses, of which 0 repeat another of their prompt and 0 are empty" in " ".join(
            summary.text.split()
        )
        assert "\\begin{tabular}" in (out / "best_of_n_table.tex").read_text()
        assert "bradley\\_terry" in (out / "best_of_n_table.md").read_text()

    def test_it_gives_the_same_bytes_again(self, written, tmp_path):
        runs, out, _ = written
        summarize_best_of_n(runs, "bradley_terry", tmp_path / "again")
        for name in best_of_n_files(["policy"]):
            assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name

    def test_runs_that_cannot_be_summarized_are_errors(self, written, tmp_path):
        runs = written[0]
        for wrong, message in (
            ([], "at least one run"),
            ([runs[0], runs[0]], "seed 0, is given twice"),
            ([replace(runs[0], pool="a/b")], "Pool name 'a/b' is not allowed"),
        ):
            with pytest.raises(UserError, match=message):
                summarize_best_of_n(wrong, None, tmp_path / "out")
        with pytest.raises(UserError, match="Did you mean 'robust'"):
            summarize_best_of_n(runs, "robus", tmp_path / "out")
        other = pool_runs(tmp_path / "other", {"x": 0.0}, seeds=(0,), responses=32)[0]
        with pytest.raises(DataError, match="does not fit"):
            summarize_best_of_n([replace(runs[0], scores=other.scores)], None, tmp_path / "out")


class TestFigure:
    def test_every_variant_has_a_panel_with_its_gold_and_the_reference_behind(self, tmp_path):
        runs = pool_runs(tmp_path, {"bradley_terry": 1.0, "robust": 0.1}, prompts=6)
        variants = []
        for name in ("bradley_terry", "robust"):
            by_seed = {run.seed: curves_of_run(run) for run in runs if run.variant == name}
            variants.append(combine_seeds(name, name, "policy", by_seed))
        figure = draw_best_of_n(variants, "bradley_terry")
        left = [axis for axis in figure.axes if axis.get_title(loc="left")]
        assert [axis.get_title(loc="left") for axis in left] == [
            "bradley_terry, 3\N{NO-BREAK SPACE}seeds",
            "robust, 3\N{NO-BREAK SPACE}seeds",
        ]

        def curves(axis):
            return [line.get_ydata() for line in axis.get_lines() if len(np.atleast_1d(line.get_ydata())) == 7]

        assert len(curves(left[0])) == 1
        reference, variant = curves(left[1])
        assert variant == pytest.approx(variants[1].mean_gold)
        assert reference == pytest.approx(variants[0].mean_gold)
        # Below gold: its difference to the reference, then the proxy; no panel has two scales.
        gold, difference, proxy = [axis for axis in figure.axes if axis.get_subplotspec().colspan.start == 1]
        (drawn,) = curves(difference)
        assert drawn == pytest.approx(variants[1].mean_gold - variants[0].mean_gold, abs=1e-12)
        assert len(curves(proxy)) == 2
        shared = [axis for axis in figure.axes if axis.get_subplotspec() == gold.get_subplotspec()]
        assert shared == [gold]

    @pytest.mark.parametrize("n_seeds", [1, 3])
    def test_one_model_has_thin_dashed_limits_and_several_a_band(self, tmp_path, n_seeds):
        runs = pool_runs(tmp_path, {"bradley_terry": 1.0}, seeds=range(n_seeds), prompts=6)
        by_seed = {run.seed: curves_of_run(run) for run in runs}
        figure = draw_best_of_n([combine_seeds("bradley_terry", "bradley_terry", "policy", by_seed)], "bradley_terry")
        gold = figure.axes[0]
        dashed = [line for line in gold.get_lines() if line.get_linewidth() == 0.8]
        assert (len(dashed), len(gold.collections)) == ((2, 0) if n_seeds == 1 else (0, 1))
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        expected = "interval over prompts only (one model)" if n_seeds == 1 else "interval over seeds and prompts"
        assert labels == ["reference: bradley_terry", expected, "highest gold", "gold at the start"]

    def test_variants_without_intervals_cut_none_and_are_not_in_the_legend(self, tmp_path):
        """One run each: the combination's difference has no interval, the rival's has one that fits its panel."""
        runs = pool_runs(tmp_path, {"base": 1.0, "both": 0.5, "rival": 0.2}, seeds=range(1), prompts=6)
        variants = []
        for run in runs:
            by_seed = {run.seed: curves_of_run(run)}
            role = "combined" if run.variant == "both" else "trained"
            variants.append(combine_seeds(run.variant, run.variant, "policy", by_seed, role=role))
        figure = draw_best_of_n(variants, "base")
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "interval over prompts only (one model)" in labels
        assert "interval over seeds and prompts" not in labels
        of_rival = [axis for axis in figure.axes if axis.get_subplotspec().colspan.start == 2]
        dashed = [line.get_ydata() for line in of_rival[1].get_lines() if line.get_linewidth() == 0.8]
        low, high = of_rival[1].get_ylim()
        assert len(dashed) == 2
        assert low <= np.min(dashed) < np.max(dashed) <= high

    def test_ppo_is_drawn_against_updates_with_the_divergence_of_each_variant_above(self, tmp_path):
        runs = [ppo_run(tmp_path, name, seed, 0.1) for name in ("bradley_terry", "robust") for seed in (0, 1)]
        variants = [
            ppo_curves(name, name, {run.seed: read_ppo_run(run.folder) for run in runs if run.variant == name})
            for name in ("bradley_terry", "robust")
        ]
        axis = [axis for axis in draw_ppo(variants, "bradley_terry").axes if axis.get_title(loc="left")][1]
        lines = [line for line in axis.get_lines() if len(np.atleast_1d(line.get_ydata())) == 6]
        assert [list(line.get_xdata()) for line in lines] == [[0, 10, 20, 30, 40, 50]] * 2
        (above,) = axis.child_axes
        assert [text.get_text() for text in above.get_xticklabels()] == ["KL 0", "2.0", "4.0"]


class TestSamples:
    def test_what_is_picked_stands_beside_what_should_have_been(self):
        item = BenchmarkItem(
            "p_1", "s", [{"role": "user", "content": "Ask"}], ["bad ```x", "", "good"], [0.1, 0.2, 0.9]
        )
        page = samples_page("pool", [("my_rm", 0, [item], [np.array([3.0, 1.0, 2.0])])])
        assert "## my\\_rm, seed 0" in page
        assert "First by proxy: gold 0.100, proxy 3.000\n\n````text\nbad ```x\n````" in page
        assert "First by gold: gold 0.900, proxy 2.000 (rank 2 by proxy)\n\n```text\ngood\n```" in page

    def test_no_text_can_leave_its_block(self):
        text = "a\r````` b\u2028# c\n```"
        block = fenced(text).split("\n")
        assert block[0] == "``````text"
        assert block[-1] == "``````"
        assert not any(line.startswith("``````") for line in block[1:-1])
        assert fenced(" ") == "```text\n[empty]\n```"
        assert fenced("y" * 1600).endswith(" [... 100 characters more]\n```")


class TestPpo:
    def test_table_curves_and_alarms(self, tmp_path):
        alarm = {"step": 40, "best_step": 20, "gold_change": -0.3, "proxy_change": 0.7}
        hacked = {
            "stopped": {"step": 45, "reason": "KL is above kl_limit."},
            "reward_hacking": {"alarm": True, "first": alarm},
        }
        runs = [
            ppo_run(tmp_path, "bradley_terry", seed, 0.6, summary=hacked if seed == 1 else None) for seed in range(3)
        ]
        runs += [ppo_run(tmp_path, "robust", seed, 0.1) for seed in range(3)]
        summary = summarize_ppo(runs, "bradley_terry", tmp_path / "out")
        assert (
            sorted(summary.files) == sorted(ppo_files()) == sorted(path.name for path in (tmp_path / "out").iterdir())
        )
        first, second = records(tmp_path / "out" / "ppo_table.csv")
        assert (first["peak"], second["peak"], first["end"]) == ("10", "50", "50")
        # gold at KL 5 is sqrt(5) - 0.6 x 5 = -0.764, at KL 1 it is 0.4
        assert float(first["gold_end"]) == pytest.approx(5**0.5 - 3.0, abs=0.02)
        assert float(first["gap"]) == pytest.approx(0.4 - (5**0.5 - 3.0), abs=0.03)
        assert second["gap_verdict"] == "significant"
        assert (float(first["kl_peak"]), float(first["kl_end"])) == pytest.approx((1.0, 5.0))
        assert (float(first["length_end"]), float(first["end_rate"]), float(first["alarms"])) == pytest.approx(
            (60.0, 0.75, 2.0)
        )
        text = " ".join(summary.text.split())
        assert "seed 1: reward hacking from step 40 on: gold -0.300 and proxy +0.700 since its best at step 20" in text
        assert "seed 1: stopped at step 45: KL is above kl_limit" in text
        assert len(records(tmp_path / "out" / "ppo.csv")) == 6 * 6

    def test_runs_that_ended_early_shorten_the_curves_and_say_so(self, tmp_path):
        runs = {
            seed: read_ppo_run(ppo_run(tmp_path, "bt", seed, 0.5, steps=steps).folder)
            for seed, steps in enumerate([(0, 10, 20), (0, 10)])
        }
        curves = ppo_curves("bt", "bt", runs)
        assert curves.axis.tolist() == [0, 10]
        assert "the curves end at step 10" in curves.notes[0]
        assert curves.proxy[:, :, 0].mean() == pytest.approx(0.0, abs=1e-12)

    def test_a_variant_that_ended_early_is_marked_and_read_where_it_ended(self, tmp_path):
        runs = [ppo_run(tmp_path, "whole", seed, 0.5, steps=(0, 10, 20, 30)) for seed in range(2)]
        runs += [
            ppo_run(tmp_path, "broken", 0, 0.5, steps=(0, 10, 20, 30)),
            ppo_run(tmp_path, "broken", 1, 0.5, steps=(0, 10)),
        ]
        text = " ".join(summarize_ppo(runs, "whole", tmp_path / "out").text.split())
        assert text.count("broken †") == 3  # the first table is stacked
        assert "whole †" not in text
        assert "broken at step 10; the longest at step 30" in text
        whole, broken = records(tmp_path / "out" / "ppo_table.csv")
        # KL is a tenth of the step, and a response has 10 tokens more than steps.
        assert (float(whole["kl_end"]), float(whole["length_end"]), whole["end"]) == (
            pytest.approx(3.0),
            pytest.approx(40.0),
            "30",
        )
        assert (float(broken["kl_end"]), float(broken["length_end"]), broken["end"]) == (
            pytest.approx(1.0),
            pytest.approx(20.0),
            "10",
        )
        assert "†" not in summarize_ppo(runs[:2], None, tmp_path / "equal").text

    def test_evaluations_that_are_not_finite_are_left_out_and_counted(self, tmp_path):
        folder = ppo_run(tmp_path, "bt", 0, 0.5).folder
        frame = pd.read_parquet(folder / "evaluation.parquet")
        frame.loc[frame["step"] == 50, "kl"] = np.nan
        frame.to_parquet(folder / "evaluation.parquet")
        run = read_ppo_run(folder)
        assert (run.steps.tolist(), run.broken_steps) == ([0, 10, 20, 30, 40], (50,))
        assert "not finite at steps [50]; left out" in ppo_curves("bt", "bt", {0: run}).notes[0]
        frame["gold"] = np.nan
        frame.to_parquet(folder / "evaluation.parquet")
        with pytest.raises(DataError, match="every evaluation holds values that are not finite"):
            read_ppo_run(folder)

    def test_missing_prompts_and_files_are_errors(self, tmp_path):
        folder = ppo_run(tmp_path, "bt", 0, 0.5).folder
        frame = pd.read_parquet(folder / "evaluation.parquet")
        frame.iloc[:-1].to_parquet(folder / "evaluation.parquet")
        with pytest.raises(DataError, match="step 50 has 19 prompts, others have 20"):
            read_ppo_run(folder)
        with pytest.raises(DataError, match="no such file"):
            read_ppo_run(tmp_path / "nothing")
